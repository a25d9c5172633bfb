"""The form of a filter on metadata; what its conditions mean is for the stores to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import SettingsError

Where = Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""A mapping of keys to conditions, which must all hold; or several of these, of which one must."""


def alternatives(where: Where | None) -> list[Mapping[str, Any]]:
    """The mappings of which one must hold; none where nothing is asked.

    Raises:
        SettingsError: it is neither a mapping nor a list of mappings, or a list of none, which nothing could pass.
    """
    if where is None:
        return []
    if isinstance(where, Mapping):
        return [where] if where else []
    several = list(where) if isinstance(where, list | tuple) else []
    if not several or not all(isinstance(one, Mapping) for one in several):
        raise SettingsError(
            "where maps metadata keys to conditions, such as {'lang': 'en'}, or is a list of such mappings, of which "
            f"one must hold; this is {where!r:.200}"
        )
    # One that asks nothing lets everything pass.
    return several if all(several) else []
