"""Releasing what the parts of a pipeline hold."""

from __future__ import annotations

from contextlib import ExitStack


def close(*parts: object) -> None:
    """Closes, in this order, those that can be closed: only some hold files or connections. None is fine.

    An error in one leaves none of the others open.
    """
    with ExitStack() as stack:
        for part in reversed(parts):
            release = getattr(part, "close", None)
            if release is not None:
                stack.callback(release)
