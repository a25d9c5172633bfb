"""What ingests of one program tell each other while they write to one collection at the same time.

Each removes what it found when it compared. What another one has written since it may remove only if it knows that
this one does not remove its own for the same reason: so they remove by turns, and who comes last leaves one version,
of an id that it was given once. Of files they do not: what has the place of an older version may be the only one that
equal files, not yet named, have.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from pipeline.forking import begin_anew


@dataclass(slots=True)
class Beside:
    """One of the ingests of a collection."""

    turn: threading.Lock
    """Of all ingests of the collection: held while versions are removed, and told what took their place."""
    brought: dict[str, str] = field(default_factory=dict)
    """Document id -> content hash of the version that another ingest has written last since this one began."""
    _all: list[Beside] = field(default_factory=list)

    def tell(self, written: Mapping[str, str]) -> None:
        """Says to the others what this one has written, content hashes by document."""
        for other in list(self._all):
            if other is not self:
                other.brought.update(written)


_ingests: dict[str, list[Beside]] = {}
_registry = threading.Lock()


@contextmanager
def beside(collection: str) -> Iterator[Beside]:
    """Takes part in the ingests of a collection, which is told by its store's name."""
    with _registry:
        ingests = _ingests.setdefault(collection, [])
        own = Beside(ingests[0].turn if ingests else threading.Lock(), _all=ingests)
        ingests.append(own)
    try:
        yield own
    finally:
        with _registry:
            ingests[:] = [one for one in ingests if one is not own]
            if not ingests:
                del _ingests[collection]


def _forget_in_child() -> None:
    """The threads that ingest are the parent's."""
    global _registry
    _registry = threading.Lock()
    _ingests.clear()


begin_anew(_forget_in_child)
