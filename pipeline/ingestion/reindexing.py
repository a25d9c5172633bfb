"""Another embedding model or other chunking without downtime: a second collection is built beside the first.

It is made from the stored chunks, no source is needed, while queries go on with the first. What an ingest writes
meanwhile is caught up with: the ledgers of both are compared until nothing is missing, the last time while writers
wait. Then the name leads to the second in one step, and the first is kept for a rollback.

A reindex that was cut off goes on where it was: what its collection holds already is left as it is. So does one back
to a model whose collection is still kept, which then only has to catch up; but not after a rollback, when the kept one
may hold what is nowhere else.

Chunks are taken as they are where their size stays what it was and they are not too long by the new model's own
tokens, and with the vectors that they have where the model stays the same. Else a document is cut anew
(:mod:`pipeline.ingestion.recutting`, with what is lost by it).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pipeline.embedding import embed_documents
from pipeline.errors import SettingsError, StoreError
from pipeline.ingestion import collection
from pipeline.ingestion.agreement import make_ready
from pipeline.ingestion.changes import by_document
from pipeline.ingestion.chunking import Chunker
from pipeline.ingestion.recutting import fits, recut
from pipeline.ingestion.run import Progress
from pipeline.interfaces import Embedder, Generations, Store
from pipeline.reports import Failure, GcReport, ReindexReport, RollbackReport
from pipeline.types import Chunk, DocumentVersion, Fingerprint, Generation

if TYPE_CHECKING:
    from pipeline.ingestion.collection import Pair

# Documents read, and chunks embedded and written, at once.
_DOCUMENTS = 100
_CHUNKS = 512
_SHOWN = 20

Ledger = Mapping[str, DocumentVersion]


def reindex(
    store: Store,
    embedder: Embedder,
    chunker: Chunker,
    fingerprint: Fingerprint,
    *,
    progress: Callable[[Progress], None] | None = None,
) -> ReindexReport:
    """Builds the collection that the embedder and chunker need from the stored one, and uses it from then on.

    Nothing is done where the collection in use is of this fingerprint already.

    Raises:
        SettingsError: there is nothing to reindex.
        StoreLockedError: another process has the store open, or builds the same collection.
        StoreError, EmbedderError: that part failed; run again it goes on. So it is where another reindex or a rollback
            was done first: that one stays.
    """
    start = time.perf_counter()
    generations = generations_of(store)
    found = generations.all()
    current = _current(store, found)
    stored = current.fingerprint
    assert stored is not None
    if stored == fingerprint:
        return ReindexReport(current.name, None, 0, 0, 0, seconds=time.perf_counter() - start)
    later = _later(found)
    name = _begun(found, fingerprint) or generations.next_name()

    def check() -> None:
        _refuse_switched(store, generations, current.name)

    with (
        _at_work(generations.open(current.name)) as old,
        generations.building(name),
        closing(generations.open(name)) as new,
    ):
        check()  # another reindex may have made this collection and be using it by now
        make_ready(new, fingerprint)
        copy = _Copy(old, new, embedder, chunker, stored, fingerprint, check, progress)
        copy.catch_up()
        new.optimize(copy.tell)
        with generations.frozen():
            brought = copy.catch_up()
            # On a server a writer may have been in the middle of a request. What is not here at the switch would be
            # here never, if this program ended with it.
            if _differing(brought, _ledger(old)):
                brought = copy.catch_up()
            check()
            generations.switch(name)
        warnings = copy.warnings() + collection.left_to_copies(by_document(old.versions()).values())
        if late := _differing(brought, _ledger(old)):
            warnings.append(
                f"{len(late)} documents, such as {min(late)}, were written or deleted in {current.name} by requests "
                "that were under way at the switch: ingest or delete them again"
            )
        if later is not None:
            with closing(generations.open(later.name)) as left:
                behind = len(_differing(_ledger(left), brought))
            if behind:
                warnings.append(
                    f"{later.name}, from which there was a rollback, is left as it is: {behind} documents there are "
                    "others or are not here. Run rag ingest again, and only then rag gc"
                )
    return ReindexReport(
        collection=name,
        kept=current.name,
        documents=copy.documents,
        chunks=copy.chunks,
        recut=copy.recut,
        warnings=warnings,
        seconds=time.perf_counter() - start,
    )


@contextmanager
def _at_work(store: Store) -> Iterator[Store]:
    """The store, opened in earnest: if another process has it, that is found before anything is made beside it."""
    with closing(store):
        next(iter(store.ledger()), None)
        yield store


def rollback(store: Store) -> RollbackReport:
    """Uses the kept collection again, and keeps the one that was in use.

    It is as it was at the switch: what came since is in the other one alone, and the report counts it. A reindex with
    the kept one's settings instead brings that over, too.

    Raises:
        SettingsError: no collection is kept, or one that this version of the package cannot query.
        StoreLockedError: another process has the store open, or is building the kept one.
        StoreError: another rollback or reindex was done meanwhile, or the kept one removed.
    """
    generations = generations_of(store)
    found = generations.all()
    kept = next((one for one in found if one.state == "kept"), None)
    if kept is None or kept.fingerprint is None:
        raise SettingsError(f"{store.name}: no collection is kept to go back to; only rag reindex leaves one")
    if kept.fingerprint.bm25 != store.bm25:
        raise SettingsError(
            f"{kept.name} has BM25 vectors of another version of this package ({kept.fingerprint.bm25!r}, this one's: "
            f"{store.bm25!r}), so no query could be answered there"
        )
    current = _current(store, found)
    with (
        generations.building(kept.name),
        generations.frozen(),
        closing(generations.open(current.name)) as newer,
        closing(generations.open(kept.name)) as older,
    ):
        behind = len(_differing(_ledger(newer), _ledger(older)))
        # While it is open, which keeps rag gc off.
        if older.fingerprint() is None:
            raise StoreError(f"{kept.name} was removed meanwhile, by rag gc: nothing was switched")
        _refuse_switched(store, generations, current.name)
        generations.switch(kept.name, back=True)
    return RollbackReport(kept.name, current.name, kept.fingerprint, behind)


def collect_garbage(store: Store, *, dry_run: bool = False) -> GcReport:
    """Removes the collections that are not in use: kept, half-built and left over ones, but none that is being built.

    One that a reindex is building or, in the embedded store, a program has open stays and is listed with the reason.

    Raises:
        SettingsError: the collection in use is not there: then one of the others may be all that is left.
    """
    generations = generations_of(store)
    removed, failures = [], []
    found = generations.all()
    others = [one for one in found if one.state != "current"]
    if others and not any(one.state == "current" and one.fingerprint is not None for one in found):
        raise SettingsError(
            f"{store.name}: {generations.current()}, the collection in use, is not there, and what is left may be all "
            f"that there is ({', '.join(one.name for one in others)}): nothing is removed. Run rag ingest first"
        )
    for one in others:
        if one.builder is not None:
            failures.append(Failure(one.name, f"is being built by {one.builder}"))
            continue
        try:
            generations.remove(one.name, dry_run=dry_run)
            removed.append(one)
        except StoreError as error:
            failures.append(Failure(one.name, str(error)))
    return GcReport(removed, failures, dry_run)


def generations_of(store: Store) -> Generations:
    """The store's collections.

    Raises:
        SettingsError: it is a store of somebody else's that has only one.
    """
    give: Callable[[], Generations] | None = getattr(store, "generations", None)
    if give is None:
        raise SettingsError(f"{store.name} holds one collection only: ingest the documents again into another one")
    return give()


def _current(store: Store, found: Iterable[Generation]) -> Generation:
    current = next((one for one in found if one.state == "current" and one.fingerprint is not None), None)
    if current is None:
        raise SettingsError(f"{store.name} does not exist: nothing to reindex; begin with rag ingest PATH")
    return current


def _later(found: Sequence[Generation]) -> Generation | None:
    """The kept collection if a rollback left it.

    It may hold what was ingested before that, and would lose it if it caught up with the one in use. Where an earlier
    version of this package rolled back only the order tells: then it was made after the one in use.
    """
    states = [one.state for one in found]
    if "kept" not in states:
        return None
    kept = found[states.index("kept")]
    return kept if kept.rolled_back or states.index("kept") > states.index("current") else None


def _begun(found: Sequence[Generation], fingerprint: Fingerprint) -> str | None:
    """Name of the collection that a reindex to this fingerprint goes on with: a half-built one, or the kept one.

    Of the left over ones only those are surely half-built that were made after both the one in use and the kept one. An
    earlier one may have been in use, and then be left after a rollback: it may hold what is nowhere else, and would
    lose it if it caught up with the one in use.
    """
    last = max(place for place, one in enumerate(found) if one.state != "leftover")
    later = _later(found)
    usable = [one for place, one in enumerate(found) if place > last or (one.state == "kept" and one is not later)]
    names = [one.name for one in usable if one.fingerprint == fingerprint]
    return names[-1] if names else None


def _refuse_switched(store: Store, generations: Generations, begun: str) -> None:
    """Whoever was faster stays: what came to that collection since is in no other.

    Raises:
        StoreError: the collection in use is no longer the one that this began from.
    """
    current = generations.current()
    if current != begun:
        raise StoreError(
            f"{store.name} was switched from {begun} to {current} meanwhile, by another rag reindex or rag rollback: "
            "nothing more is switched. Look at rag status, and run it again if it is still wanted"
        )


def _ledger(store: Store) -> Ledger:
    return {version.document_id: version for version in collection.documents(store)}


def _identity(version: DocumentVersion) -> DocumentVersion:
    """What makes a version the same in two collections, where it may be cut differently."""
    return replace(version, present=0, count=0)


def _differing(one: Ledger, other: Ledger) -> set[str]:
    """Documents that are not in both, or not in the same version."""
    return {
        document_id
        for document_id in one.keys() | other.keys()
        if document_id not in one
        or document_id not in other
        or _identity(one[document_id]) != _identity(other[document_id])
    }


@dataclass
class _Copy:
    """Brings what one collection holds into another one, as it has to be there."""

    old: Store
    new: Store
    embedder: Embedder
    chunker: Chunker
    stored: Fingerprint
    wanted: Fingerprint
    check: Callable[[], None]
    """Raises an error if the collection in use is no longer the old one: then this may not change the new one."""
    progress: Callable[[Progress], None] | None = None

    documents: int = 0
    chunks: int = 0
    recut: int = 0
    _incomplete: set[str] = field(default_factory=set)
    _total: int = 0

    def catch_up(self) -> Ledger:
        """Writes what is missing or other in the new collection, and removes what the old one no longer holds.

        Returns the old one's ledger.
        """
        ledger = _ledger(self.old)
        there = by_document(self.new.versions())
        due = {id_: version for id_, version in ledger.items() if not _holds(there.get(id_, []), version)}
        gone = there.keys() - ledger.keys()
        self._total = self.documents + len(due)
        pending: list[Pair] = []
        ids = list(due)
        for first in range(0, len(ids), _DOCUMENTS):
            some = {id_: due[id_] for id_ in ids[first : first + _DOCUMENTS]}
            self.check()
            # What is left of one may be cut in another way than what is written now.
            broken = {
                id_: {version.content_hash} for id_, version in some.items() if _has_part(there.get(id_, []), version)
            }
            if broken:
                self.new.delete_versions(broken)
            for chunks in self._documents(some):
                # As whole documents: programs that opened the kept collection go on answering from it.
                step = len(chunks) if len(chunks) <= self.new.whole_chunks else _CHUNKS
                for start in range(0, len(chunks), step):
                    pending += chunks[start : start + step]
                    if len(pending) >= _CHUNKS:
                        self._write(pending)
                        pending = []
            self._write(pending)
            pending = []
            # Only now, when all of the new version is there.
            stale = {
                id_: {one.content_hash for one in there[id_]} - {version.content_hash}
                for id_, version in some.items()
                if id_ in there
            }
            if stale:
                self.new.delete_versions(stale)
            self.documents += len(some)
            self.tell()
        if gone:
            self.check()
            self.new.delete_documents(sorted(gone))
        return ledger

    def _documents(self, wanted: Ledger) -> Iterator[list[Pair]]:
        """The chunks of these documents as they have to be."""
        # With their vectors, if those can be taken over. What was removed meanwhile the next look at the ledger finds.
        taken = self.stored.embedder == self.wanted.embedder
        for id_, stored in collection.in_order(self.old, wanted, vectors=taken).items():
            chunks = [chunk for chunk, _ in stored]
            if len(chunks) < chunks[0].count:
                # Cut anew it would pass for the whole.
                self._incomplete.add(id_)
                yield stored
            elif self._as_it_is(chunks):
                yield stored
            else:
                self.recut += 1
                new = recut(chunks, self.chunker, overlapping=self.stored.chunk_overlap > 0)
                yield [(chunk, None) for chunk in new]

    def _as_it_is(self, chunks: list[Chunk]) -> bool:
        one, other = self.stored, self.wanted
        if (one.chunk_tokens, one.chunk_overlap) != (other.chunk_tokens, other.chunk_overlap):
            return False
        return one.embedder == other.embedder or fits(chunks, self.embedder.tokenizer, other.chunk_tokens)

    def _write(self, stored: list[Pair]) -> None:
        import numpy as np

        if stored:
            unknown = [chunk.full_text for chunk, vector in stored if vector is None]
            embedded = iter(embed_documents(self.embedder, unknown))
            vectors = [next(embedded) if vector is None else vector for _, vector in stored]
            self.new.upsert([chunk for chunk, _ in stored], np.stack(vectors))
            self.chunks += len(stored)
            self.tell()

    def tell(self, message: str = "") -> None:
        if self.progress is not None:
            said = message or f"{self.documents} of {self._total} documents"
            self.progress(Progress(0, 0, self.documents, self.chunks, said))

    def warnings(self) -> list[str]:
        shown = [
            f"{id_}: not all of its chunks are stored; those that are were taken over (see rag verify)"
            for id_ in sorted(self._incomplete)[:_SHOWN]
        ]
        if len(self._incomplete) > _SHOWN:
            shown.append(f"{len(self._incomplete) - _SHOWN} more documents are not complete")
        return shown


def _holds(versions: Iterable[DocumentVersion], wanted: DocumentVersion) -> bool:
    """Whether exactly this version is there, and as much of it as there is."""
    found = list(versions)
    if len(found) != 1 or _identity(found[0]) != _identity(wanted):
        return False
    return found[0].complete if wanted.complete else found[0] == wanted


def _has_part(versions: Iterable[DocumentVersion], wanted: DocumentVersion) -> bool:
    return any(version.content_hash == wanted.content_hash and not version.complete for version in versions)
