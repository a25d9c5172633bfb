"""What has to be written and what has to go, from the ledger in the store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from pathlib import PurePath
from typing import Literal

from pipeline.types import DocumentVersion

State = Literal["new", "changed", "unchanged"]


@dataclass(frozen=True, slots=True)
class Change:
    """What an ingest has to do for one document."""

    state: State
    stale: bool
    """Whether chunks of other versions are in the store and must go once this version is complete."""
    write: bool
    """Whether it has to be embedded and written."""
    shared: bool = False
    """Whether other files have a part in it: then :mod:`pipeline.ingestion.copies` puts right what they share."""


def compare(content_hash: str, stored: Sequence[DocumentVersion]) -> Change:
    """A document's hash against the versions of it that the store holds.

    A version that was cut off in writing counts as absent, so that it is written again; a complete one beside
    stale ones needs no writing, only their removal.
    """
    stale = any(version.content_hash != content_hash for version in stored)
    if any(version.content_hash == content_hash and version.complete for version in stored):
        return Change("unchanged", stale, write=False)
    return Change("changed" if stored else "new", stale, write=True)


def by_document(versions: Iterable[DocumentVersion]) -> dict[str, list[DocumentVersion]]:
    """Versions grouped by document id."""
    groups: dict[str, list[DocumentVersion]] = defaultdict(list)
    for version in versions:
        groups[version.document_id].append(version)
    return groups


def answering(versions: Iterable[DocumentVersion]) -> DocumentVersion:
    """The version of a document that queries answer with: a complete one, or else that with the most chunks.

    Which of several complete ones is newer is not known; the hash makes it always the same one.
    """
    return max(versions, key=lambda version: (version.complete, version.present, version.content_hash))


@dataclass(frozen=True, slots=True)
class Prune:
    """Documents under some roots whose sources are gone."""

    doomed: list[str]
    """Document ids; of files with copies their paths."""
    total: int
    """Documents that the store held under these roots before this run, each copy counted."""
    shared: set[str]
    """Content hashes of the documents of which a copy is gone."""
    moved: int = 0
    """How many of the doomed have their content under another name now, so that nothing of it is lost."""
    emptied: tuple[str, ...] = ()
    """Roots of which all documents would go."""

    def refusal(self, max_delete: float, refused: Set[str] = frozenset()) -> str | None:
        """Why this must not be done, or None.

        ``refused`` are documents whose removal was refused before: what came in their place since does not make it
        right.

        With 0 nothing may go; else one document always may. More than ``max_delete`` (a share of ``total``) may not,
        nor may all of a root: an unmounted folder looks like one whose files were all deleted. What was moved does not
        count.
        """
        n = len(self.doomed) - self.moved
        if max_delete >= 1.0 or n == 0:
            return None
        if self.emptied or n > (max(1.0, max_delete * self.total) if max_delete else 0):
            where = f"all of {', '.join(self.emptied)}, " if self.emptied and n < self.total else ""
            return (
                f"prune would delete {n} of {self.total} documents here, {where}more than --max-delete {max_delete:g} "
                "allows; nothing was deleted. Is a folder unmounted or empty? If they shall go, use --max-delete 1"
            )
        if not refused.isdisjoint(self.doomed):
            return (
                f"prune would delete {n} of {self.total} documents here, as was refused before; nothing was deleted. "
                "If they shall go, use --max-delete 1"
            )
        return None


def plan_prune(
    versions: Iterable[DocumentVersion],
    roots: Sequence[str],
    seen: Iterable[str],
    unreadable: Iterable[str],
    *,
    contents: Set[str] = frozenset(),
    new: Set[str] = frozenset(),
    places: Set[str] = frozenset(),
    still_there: Callable[[str], bool] = lambda source: False,  # noqa: ARG005
) -> Prune:
    """Which documents have a source under ``roots`` (absolute paths) but were not met in this run.

    A source that could not be read is there all the same: its documents stay, and those of all files in it if it is a
    folder. ``contents`` has the hashes of what was met: a document that is among them was only moved. ``new`` are ids
    of documents that this run has brought: the share that may go is one of what was there before. ``places`` are the
    sources of all that was met: a root with one of them in it is not emptied. What is ``still_there`` stays.
    """
    met, failed, under = set(seen), set(unreadable), set(roots)
    here: dict[str, str] = {}
    held: dict[str, set[str]] = defaultdict(set)
    copied: dict[str, set[str]] = defaultdict(set)
    for version in versions:
        for source in version.sources:
            if is_within(source, under):
                # A copy has no document of its own; its id would be its path.
                id_ = source if version.copies else version.document_id
                here[id_] = source
                held[id_].add(version.content_hash)
                if version.copies:
                    copied[source].add(version.content_hash)
    doomed = [
        id_
        for id_, source in here.items()
        if id_ not in met and not is_within(source, failed) and not still_there(source)
    ]
    lost = {id_ for id_ in doomed if not held[id_] <= contents}
    emptied = {place for id_ in lost for place in _around(here[id_]) if place in under}
    for source in chain(places, (source for id_, source in here.items() if id_ not in lost)):
        if not emptied:
            break
        emptied.difference_update(_around(source))
    return Prune(
        sorted(doomed),
        len(here.keys() - new),
        shared=set().union(*(copied.get(id_, ()) for id_ in doomed)),
        moved=len(doomed) - len(lost),
        emptied=tuple(root for root in roots if root in emptied),
    )


def any_within(versions: Iterable[DocumentVersion], place: str) -> bool:
    """Whether documents have their source at a place or in it."""
    return any(is_within(source, {place}) for version in versions for source in version.sources)


def _around(source: str) -> list[str]:
    """The source itself, and all folders that it lies in."""
    return [source, *(parent.as_posix() for parent in PurePath(source).parents)]


def is_within(source: str, places: Set[str]) -> bool:
    """Whether a source is one of the places or lies in one."""
    return bool(places) and (source in places or not places.isdisjoint(_around(source)))
