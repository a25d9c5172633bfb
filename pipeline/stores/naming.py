"""How the collections are called that stand side by side under one name.

The first is called as ``RAG_COLLECTION`` says, so collections made before there was reindexing are what they are now.
The next are ``<name>.2``, ``<name>.3`` and so on: names that users give hold no dot.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


def number(base: str, name: str) -> int | None:
    """1 for the first collection of this name, 2 and more for the next; None for one that is none of them."""
    if name == base:
        return 1
    match = re.fullmatch(re.escape(base) + r"\.([1-9][0-9]*)", name)
    return int(match[1]) if match and int(match[1]) > 1 else None


def ordered(base: str, names: Iterable[str]) -> list[str]:
    """Those of the names that stand under ``base``, in the order in which they were made."""
    found = {name: place for name in names if (place := number(base, name)) is not None}
    return sorted(found, key=lambda name: found[name])


def following(base: str, names: Iterable[str]) -> str:
    """A name after all of these."""
    return f"{base}.{max((number(base, name) or 1 for name in names), default=1) + 1}"
