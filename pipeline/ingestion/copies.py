"""Files with equal content are stored once: as the document of one of them, which names the others as its copies.

Only documents that are a file each are shared: any other has an id of its own by which its owner looks for it. What an
ingest finds out about copies is put right at its end, and always so that a crash leaves a document too many and never
one too few: first the chunks are written under their new names, then those under the old names go.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import TYPE_CHECKING

from pipeline.errors import StoreError
from pipeline.ingestion.changes import Change, compare
from pipeline.interfaces import Store
from pipeline.text import file_name, title_of_path
from pipeline.types import Chunk, DocumentVersion, chunk_id

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Embed = Callable[[Sequence[str]], "NDArray[np.float32]"]
"""Makes a vector of each text, as :func:`pipeline.embedding.embed_documents` does."""

_AT_ONCE = 200
_LOOKS = 3


def related(store: Store, names: Sequence[str], content_hashes: Sequence[str]) -> Iterator[DocumentVersion]:
    """As :meth:`pipeline.interfaces.Store.related`, with versions as a whole.

    Where not all chunks of a version have the name, the store sees only those that do.
    """
    doubtful = set()
    for version in store.related(names, content_hashes):
        if version.copies and not version.complete:
            doubtful.add(version.content_hash)
        else:
            yield version
    if doubtful:
        yield from store.related([], sorted(doubtful))


class Related:
    """What the store holds of some files and of their contents."""

    def __init__(self, versions: Iterable[DocumentVersion]) -> None:
        self.versions: dict[str, list[DocumentVersion]] = defaultdict(list)
        """Path of a file -> versions that are its own or name it as a copy."""
        self.holders: dict[str, int] = defaultdict(int)
        """Content hash -> how many documents of files hold it as a whole."""
        for version in versions:
            for path in (version.document_id, *version.copies):
                self.versions[path].append(version)
            self.holders[version.content_hash] += version.complete and _of_a_file(version)


@dataclass
class Sharing:
    """What one run finds out about files that share a content, and has to put right at its end."""

    due: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Content hash -> paths of files that have this content now, or had it before."""
    _written: set[str] = field(default_factory=set)
    """Content hashes of the files that this run writes: the store may not hold them yet."""
    _leaving: set[str] = field(default_factory=set)
    """Content hashes of which this run removes a document, as soon as its file's new content is written."""

    def note(self, path: str, content_hashes: Iterable[str]) -> None:
        """A file has, or had, these contents."""
        for content_hash in content_hashes:
            self.due[content_hash].add(path)

    def compare(self, path: str, content_hash: str, related: Related) -> Change:
        """What has to be done now for a file with this content."""
        versions = related.versions.get(path, [])
        change = compare(content_hash, versions)
        old = {version.content_hash for version in versions} - {content_hash}
        held = related.holders.get(content_hash, 0) if content_hash not in self._leaving else 0
        if change.write and (held or content_hash in self._written):
            # An equal file has it. What the path had before may go only after it is named there.
            self.note(path, {content_hash, *old})
            return replace(change, write=False, stale=False, shared=True)
        if change.write:
            self._written.add(content_hash)
            for version in versions:  # what is written anew, because some of it was lost, shall keep its copies
                if version.content_hash == content_hash:
                    for source in version.copies:
                        self.note(source, [content_hash])
        if (
            held > 1
            or not old.isdisjoint(self.due)
            or any(version.torn or (version.copies and version.content_hash in old) for version in versions)
            # A part of it that a cut-off removal left beside the whole, under this or another name.
            or (not change.write and any(not v.complete for v in versions if v.content_hash == content_hash))
        ):
            self.note(path, {content_hash, *old})
            return replace(change, stale=False, shared=True)
        self._leaving |= old
        return change

    def compare_alone(self, id_: str, content_hash: str, versions: Sequence[DocumentVersion]) -> Change:
        """What has to be done for a document that is no file, though it may have the id of one with copies."""
        change = compare(content_hash, versions)
        if not any(version.copies or version.torn for version in versions):
            return change
        for version in versions:
            for path in (id_, *version.copies):
                self.note(path, [version.content_hash])
        return replace(change, stale=False, shared=True)

    def settle(
        self, store: Store, embed: Embed, *, now: Mapping[str, str] | None = None, gone: Set[str] = frozenset()
    ) -> tuple[int, int]:
        """Puts it right; returns how many chunks were written under another name, and how many deleted.

        ``now``: path -> content hash of all files that were read. ``gone``: paths of those that shall be forgotten.
        Files that were not read keep what they have.

        Raises:
            StoreError: other programs keep changing the same documents; nothing is removed.
        """
        moved = 0
        for _ in range(_LOOKS):
            plans = self.plans(store, now=now, gone=gone)
            # A file that has another content now must be named there before it is not named here any more.
            gaining = [plan for plan in plans if plan.gains]
            written = [plan for plan in gaining if _write(store, embed, plan, {*plan.copies, *plan.lost})]
            moved += sum(plan.moved for plan in written)
            if len(written) < len(gaining):
                continue
            if all(_write(store, embed, plan, {*plan.copies}) for plan in plans if plan.lost):
                doomed: dict[str, set[str]] = defaultdict(set)
                for version in chain.from_iterable(plan.doomed for plan in plans):
                    doomed[version.document_id].add(version.content_hash)
                return moved, store.delete_versions(doomed) if doomed else 0
        raise StoreError(
            f"{store.name}: another program keeps changing documents of files with equal content: run this again when "
            "it is done"
        )

    def plans(
        self, store: Store, *, now: Mapping[str, str] | None = None, gone: Set[str] = frozenset()
    ) -> list[SharingPlan]:
        """What :meth:`settle` would do."""
        now = {} if now is None else now
        plans = []
        hashes = iter(self.due)
        while batch := list(islice(hashes, _AT_ONCE)):
            groups: dict[str, list[DocumentVersion]] = defaultdict(list)
            for version in filter(_of_a_file, store.related([], batch)):
                groups[version.content_hash].append(version)
            for content_hash, versions in groups.items():
                known = {source for version in versions if version.complete for source in version.sources}
                sources = {
                    path
                    for path in known | self.due[content_hash]
                    if path and path not in gone and now.get(path, content_hash) == content_hash
                }
                plans.append(_plan(content_hash, versions, sources))
        return plans


@dataclass(frozen=True, slots=True)
class SharingPlan:
    """How one content shall be held."""

    content_hash: str
    document_id: str = ""
    copies: frozenset[str] = frozenset()
    stored_as: str = ""
    """Id of a document that has it now."""
    gains: bool = False
    """Whether something has to be written that is named nowhere yet."""
    moved: int = 0
    """Chunks that get another name, or are completed: of the others only the copies change."""
    lost: frozenset[str] = frozenset()
    """Copies that the document has now and shall not have."""
    doomed: tuple[DocumentVersion, ...] = ()
    """What is to be removed."""


def _plan(content_hash: str, versions: Sequence[DocumentVersion], sources: Set[str]) -> SharingPlan:
    """Of the documents that have a content one stays, under a name that is among the sources."""
    complete = sorted((version for version in versions if version.complete), key=lambda version: version.document_id)
    if not complete or not sources:
        # Without a complete one there is nothing to write; what is still a source's own will be completed by ingest.
        return SharingPlan(
            content_hash, doomed=tuple(version for version in versions if not sources & {*version.sources})
        )
    kept = next((version for version in complete if version.document_id in sources), None)
    document_id = min(sources) if kept is None else kept.document_id
    copies = frozenset(sources - {document_id})
    return SharingPlan(
        content_hash,
        document_id=document_id,
        copies=copies,
        stored_as=(kept or complete[0]).document_id,
        moved=complete[0].count if kept is None or kept.torn else 0,
        gains=kept is None or kept.torn or not copies <= {*kept.copies},
        lost=frozenset() if kept is None else frozenset(kept.copies) - copies,
        doomed=tuple(version for version in versions if version.document_id != document_id),
    )


def chunk_ids(versions: Iterable[DocumentVersion]) -> tuple[str, ...]:
    """Those that whole versions have."""
    return tuple(
        chunk_id(version.document_id, version.content_hash, index)
        for version in versions
        for index in range(version.count)
    )


def _write(store: Store, embed: Embed, plan: SharingPlan, copies: Set[str]) -> bool:
    """Writes what is stored again under its new name and with these copies.

    Not if it is no longer there as a whole, as another program has changed it since the plan was made.
    """
    import numpy as np

    chunks, vectors = [], []
    for chunk, vector in store.chunks_with_vectors([plan.stored_as]):
        if chunk.content_hash == plan.content_hash:
            renamed = _renamed(chunk, plan.document_id, tuple(sorted(copies)))
            chunks.append(renamed)
            vectors.append(vector if renamed.full_text == chunk.full_text else embed([renamed.full_text])[0])
    if not chunks or len(chunks) < chunks[0].count:
        return False
    store.upsert(chunks, np.stack(vectors))
    return True


def _renamed(chunk: Chunk, path: str, copies: tuple[str, ...]) -> Chunk:
    """The chunk with a path and copies; where the title is made of the file's path, it is that of the new one."""
    first, separator, rest = chunk.title.partition(" > ")
    old = (file_name(chunk.source), title_of_path(chunk.source))
    title = f"{title_of_path(path)}{separator}{rest}" if first in old else chunk.title
    names = list(dict.fromkeys(map(file_name, (path, *copies))))
    metadata = {**chunk.metadata, "file_name": names[0] if len(names) == 1 else names}
    return replace(chunk, document_id=path, source=path, copies=copies, title=title, metadata=metadata)


def as_copy(chunk: Chunk, paths: Sequence[str]) -> Chunk:
    """A chunk with copies as that of these of them: its own file has another content by now."""
    return _renamed(chunk, paths[0], tuple(paths[1:]))


def _of_a_file(version: DocumentVersion) -> bool:
    """Whether it may have copies: a file's document has its source as its id. Others may be equal and are all kept."""
    return version.document_id == version.source
