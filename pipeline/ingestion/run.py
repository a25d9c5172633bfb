"""One ingest: read, compare with the ledger, chunk, embed, write, tidy up.

Four threads overlap, with bounded queues between them: one reads files, the caller's compares and chunks, one embeds,
one writes. The order of writes is what makes a crash harmless: all chunks of a document's new version first, then the
removal of its old version.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import deadline
from pipeline.embedding import embed_documents
from pipeline.errors import SettingsError
from pipeline.ingestion.agreement import make_ready
from pipeline.ingestion.beside import Beside, beside
from pipeline.ingestion.changes import any_within, by_document, plan_prune
from pipeline.ingestion.chunking import Chunker
from pipeline.ingestion.copies import Related, Sharing, related
from pipeline.ingestion.loaders import MAX_BYTES, is_still_there
from pipeline.ingestion.reading import hash_of, passed_over, read
from pipeline.ingestion.stages import Stopwatch, read_ahead, write_behind
from pipeline.interfaces import Embedder, Store
from pipeline.reports import Failure, IngestProfile, IngestReport, NoText
from pipeline.types import METADATA_LEVELS, Chunk, Document, DocumentVersion, Fingerprint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Chunks embedded at once: the engine sorts them by length, so more of them means less padding. It begins with the first
# few, and then with as many as it has had: neither embedding nor writing waits for all of a small ingest to be read.
_EMBED_CHUNKS = 512
_FIRST_CHUNKS = 64
_REPEATED_SHOWN = 20
_NOTHING_TO_PRUNE = "prune needs files or folders to compare with, not documents alone"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an ingest is."""

    files_done: int
    files_total: int
    documents: int
    """Documents looked at so far."""
    chunks: int
    """Chunks written so far."""
    message: str = ""
    """Set where a step of its own begins, such as building the index."""


@dataclass(frozen=True, slots=True)
class _Work:
    """What is embedded and written in one go: first the chunks, then the removal of other versions."""

    chunks: list[Chunk]
    stale: dict[str, set[str]]
    """Document id -> content hashes of the other versions that were in the store when it was compared. What another
    program has brought since is not among them: two that go on at once would remove each other's, and leave nothing."""
    current: dict[str, str]
    """Document id -> content hash of the version that those are removed for, if this ingest writes it."""
    alone: dict[str, str]
    """Document id -> content hash of what is written and no file, so that it can have no copies."""


@dataclass
class IngestRun:
    """State of one ingest. ``execute`` may be called once."""

    embedder: Embedder
    store: Store
    chunker: Chunker
    fingerprint: Fingerprint
    max_bytes: int = MAX_BYTES
    dry_run: bool = False
    unread: Set[str] = frozenset()
    """Sources, and folders of such, that are passed over: what is stored of them stays."""
    ignored: Sequence[str] = ()
    """Folders that are not read as a part of others."""
    progress: Callable[[Progress], None] | None = None
    refused: set[str] = field(default_factory=set)
    """Ids that :meth:`execute` must not prune, as it was refused once, until one of them is back. The caller keeps it
    from run to run."""

    _counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("new", "changed", "unchanged"), 0))
    _written: int = 0
    _deleted_chunks: int = 0
    _would_delete: dict[tuple[str, str], int] = field(default_factory=dict)
    _failures: list[Failure] = field(default_factory=list)
    _skipped: list[NoText] = field(default_factory=list)
    _warnings: list[str] = field(default_factory=list)
    _repeated: set[str] = field(default_factory=set)
    _sharing: Sharing = field(default_factory=Sharing)
    _seen: dict[str, str] = field(default_factory=dict)
    _new: set[str] = field(default_factory=set)
    _places: set[str] = field(default_factory=set)
    _pending: list[Chunk] = field(default_factory=list)
    _stale: dict[str, set[str]] = field(default_factory=dict)
    _current: dict[str, str] = field(default_factory=dict)
    _alone: dict[str, str] = field(default_factory=dict)
    _beside: Beside = field(default_factory=lambda: Beside(threading.Lock()))
    _handed_on: int = 0
    _ready: bool = False
    _watch: Stopwatch = field(default_factory=Stopwatch)
    _files: tuple[int, int] = (0, 0)

    def execute(
        self, items: Iterable[Document | str | Path], *, prune: bool = False, max_delete: float = 0.2
    ) -> IngestReport:
        """Runs the ingest and says what it did."""
        with beside(self.store.name) as self._beside:
            return self._execute(items, prune=prune, max_delete=max_delete)

    def _execute(self, items: Iterable[Document | str | Path], *, prune: bool, max_delete: float) -> IngestReport:
        # What can be looked through beforehand is refused before anything of it is written.
        if prune and isinstance(items, Sequence) and all(isinstance(item, Document) for item in items):
            raise SettingsError(_NOTHING_TO_PRUNE)
        start = time.perf_counter()
        roots: list[str] = []

        @cache  # asked before the reading and in it
        def held(source: str) -> bool:  # what is gone as a whole can be pruned, too
            return prune and any_within(self.store.versions(), source)

        given_up = threading.Event()
        reading = self._watch.reading(read(items, roots, self.max_bytes, self.unread, held, self.ignored), "reading")
        with (
            read_ahead(reading, size=4) as batches,
            write_behind(self._write, 2, given_up) as write,
            write_behind(partial(self._embed, write), 2, given_up) as put,
        ):
            for batch in batches:
                self._files = (batch.files_done, batch.files_total)
                self._note_repeated(batch.repeated)
                self._pass_over(batch.skipped, prune)
                for work in self._watch.reading(self._take(batch.items), "chunking"):
                    put(work)
                self._report()
            if prune and not roots:  # of an iterator it is known only now
                raise SettingsError(_NOTHING_TO_PRUNE)
            put(self._cut())
        if not self._seen and not self._failures and not self.unread:
            self._warnings.append("nothing to ingest: no files with text there (hidden ones are left out)")
        if len(self._repeated) > _REPEATED_SHOWN:
            self._warnings.append(f"{len(self._repeated) - _REPEATED_SHOWN} more ids were given more than once")
        gone = self._prune(roots, max_delete) if prune else set()
        if self.dry_run:
            self._count_settling(gone)
        else:
            with self._watch.working("writing"):
                self._settle(gone)
        written = time.perf_counter()
        if not self.dry_run:
            self.store.optimize(self._report)  # may be due even if nothing changed: the last run may have been cut off
        end = time.perf_counter()
        return IngestReport(
            **self._counts,
            deleted=len(gone),
            chunks_written=self._written,
            chunks_deleted=self._deleted_chunks,
            failures=self._failures,
            skipped=self._skipped,
            warnings=self._warnings,
            seconds=end - start,
            dry_run=self.dry_run,
            profile=IngestProfile(
                seconds=written - start,
                **{stage: self._watch.seconds[stage] for stage in ("reading", "chunking", "embedding", "writing")},
                indexing=end - written,
                peak_mb=_peak_mb(),
            ),
        )

    def _take(self, items: list[Document | Failure]) -> Iterator[_Work]:
        """Compares a batch of documents with the ledger, chunks those that changed, gives what is to be embedded."""
        documents = []
        hashes = []
        for item in items:
            if isinstance(item, Failure):
                self._failures.append(item)
            elif not item.text.strip():
                self._failures.append(Failure(item.source, "no text in it"))
            elif not _fits(item.metadata, METADATA_LEVELS):
                self._failures.append(
                    Failure(item.source, f"{item.id}: metadata of more than {METADATA_LEVELS} levels")
                )
            elif isinstance(content_hash := hash_of(item), Failure):
                self._failures.append(content_hash)
            else:
                documents.append(item)
                hashes.append(content_hash)
        if not documents:
            return
        files = {doc.id: hash_ for doc, hash_ in zip(documents, hashes, strict=True) if doc.from_file}
        others = [document.id for document in documents if not document.from_file]
        held = Related(related(self.store, list(files), list(files.values())) if files else ())
        stored = by_document(self.store.versions(others) if others else ())
        for document, content_hash in zip(documents, hashes, strict=True):
            before = self._seen.get(document.id)
            self._seen[document.id] = content_hash
            self._places.add(document.source)
            if before == content_hash:
                continue
            versions = held.versions.get(document.id, []) if document.from_file else stored.get(document.id, [])
            replaced = {version.content_hash for version in versions}
            if document.from_file:
                change = self._sharing.compare(document.id, content_hash, held)
            else:
                change = self._sharing.compare_alone(document.id, content_hash, versions)
            write, stale = change.write, change.stale
            if before is None:
                self._counts[change.state] += 1
                if change.state == "new":
                    self._new.add(document.id)
            else:
                self._note_repeated([document.id])
                # What this run wrote for the id before is not in the ledger that was read above.
                if change.shared:
                    self._sharing.note(document.id, [before])
                else:
                    write = stale = True
                    replaced.add(before)
            if write:
                yield from self._queue(document)
                if not document.from_file:
                    self._alone[document.id] = content_hash
            if stale:
                replaced |= self._stale.get(document.id, set())
                self._stale[document.id] = replaced - {content_hash}
                if write:
                    self._current[document.id] = content_hash

    def _pass_over(self, files: list[NoText], prune: bool) -> None:
        """Files without text are no failures, unless there was one: that only a prune removes, where it may."""
        sources = [file.source for file in files if not (prune and file.certain)]
        held = self.store.related(sources, []) if sources else ()
        stored = {source for version in held for source in version.sources}
        for file in files:
            if file.source not in stored:
                self._skipped.append(file)
            elif file.certain:
                left = f"{file.error}; what is stored of it stays until an ingest with --prune"
                self._failures.append(NoText(file.source, left))
            else:
                left = f"{file.error}; what is stored of it stays while the file is there"
                self._failures.append(Failure(file.source, left))

    def _note_repeated(self, ids: Iterable[str]) -> None:
        for id_ in ids:
            if id_ not in self._repeated:
                self._repeated.add(id_)
                if len(self._repeated) <= _REPEATED_SHOWN:
                    self._warnings.append(f"the id {id_!r} was given more than once: the last one counts")

    def _queue(self, document: Document) -> Iterator[_Work]:
        chunks = self.chunker.chunk(document)
        # A document goes to the store as a whole, unless it is too long to be held as one.
        step = len(chunks) if len(chunks) <= self.store.whole_chunks else _EMBED_CHUNKS
        for start in range(0, len(chunks), step):
            self._pending += chunks[start : start + step]
            if len(self._pending) >= min(_EMBED_CHUNKS, max(_FIRST_CHUNKS, self._handed_on)):
                yield self._cut()

    def _cut(self) -> _Work:
        """What waits, which is then in work."""
        work = _Work(self._pending, self._stale, self._current, self._alone)
        self._handed_on += len(self._pending)
        self._pending, self._stale, self._current, self._alone = [], {}, {}, {}
        return work

    def _embed(self, write: Callable[[tuple[_Work, NDArray[np.float32] | None]], None], work: _Work) -> None:
        if self.dry_run:
            self._foretell(work)
        elif work.chunks:
            with self._watch.working("embedding"):
                vectors = embed_documents(self.embedder, [chunk.full_text for chunk in work.chunks])
            write((work, vectors))
        elif work.stale or work.alone:
            write((work, None))

    def _foretell(self, work: _Work) -> None:
        """Counts what would be written, and what would go for it."""
        self._written += len(work.chunks)
        if work.stale:
            stored = self.store.versions(list(work.stale))
            self._foretell_removal(v for v in stored if v.content_hash in work.stale[v.document_id])

    def _write(self, embedded: tuple[_Work, NDArray[np.float32] | None]) -> None:
        work, vectors = embedded
        with self._watch.working("writing"):
            if not self._ready:
                make_ready(self.store, self.fingerprint)
                self._ready = True
            if vectors is not None:
                self.store.upsert(work.chunks, vectors)
                self._written += len(work.chunks)
            with self._beside.turn:
                self._replace(work)
        self._report()

    def _replace(self, work: _Work) -> None:
        """Removes what other versions take the place of, and tells the ingests beside this one."""
        brought = {
            id_: hash_
            for id_ in {*work.stale, *work.alone}
            if (hash_ := self._beside.brought.pop(id_, None)) is not None
        }
        stale, current = dict(work.stale), dict(work.current)
        for id_, hash_ in brought.items():
            if id_ in work.alone:
                stale[id_] = stale.get(id_, set()) | {hash_} - {work.alone[id_]}
                current[id_] = work.alone[id_]
            elif id_ not in current and hash_ != self._seen[id_]:
                del stale[id_]  # what was found to be current here was replaced meanwhile
        torn = self._torn(current)
        for id_ in torn:
            del stale[id_]
            if id_ not in brought:
                self._failures.append(
                    Failure(
                        id_, "chunks of it were removed while it was written; what was there before stays: ingest again"
                    )
                )
        if stale:
            self._deleted_chunks += self.store.delete_versions(stale)
        now = {id_: self._seen[id_] for id_ in stale} | work.alone
        self._beside.tell({id_: hash_ for id_, hash_ in now.items() if id_ not in torn})

    def _torn(self, written: dict[str, str]) -> set[str]:
        """Which of these documents are not all there in this version, so that nothing may go for them: somebody may
        have removed a part of what was being written."""
        versions = self.store.versions(list(written)) if written else ()
        there = {(version.document_id, version.content_hash) for version in versions if version.complete}
        return {id_ for id_, hash_ in written.items() if (id_, hash_) not in there}

    def _prune(self, roots: list[str], max_delete: float) -> set[str]:
        """Which documents have to go, or paths of copies, because their sources are gone."""
        # One that was left out because it is repeated was met, whatever became of the others since.
        met = chain(self._seen, self._repeated)
        failed = (failure.source for failure in self._failures)
        unread = chain(self.unread, failed, passed_over(self.ignored, roots))
        without_text = {file.source for file in self._skipped}
        plan = plan_prune(
            self.store.versions(),
            roots,
            met,
            unread,
            contents=frozenset(self._seen.values()),
            new=self._new,
            places=self._places,
            still_there=lambda source: source not in without_text and is_still_there(source),
        )
        if not self.refused <= set(plan.doomed):  # what was away is back, so that the others are really gone
            self.refused.clear()
        refusal = plan.refusal(max_delete, self.refused)
        if refusal is not None:
            self._failures.append(Failure(", ".join(roots), refusal))
            if not self.dry_run:
                self.refused.update(plan.doomed)
            return set()
        self.refused.difference_update(plan.doomed)
        for content_hash in plan.shared:
            self._sharing.note("", [content_hash])
        return set(plan.doomed)

    def _settle(self, gone: set[str]) -> None:
        """Puts right which files share a document, and removes what is gone."""
        embed = partial(embed_documents, self.embedder)
        written, deleted = self._sharing.settle(self.store, embed, now=self._seen, gone=gone)
        self._written += written
        self._deleted_chunks += deleted
        if gone:
            self._deleted_chunks += self.store.delete_documents(sorted(gone))

    def _count_settling(self, gone: set[str]) -> None:
        """What :meth:`_settle` would do."""
        for plan in self._sharing.plans(self.store, now=self._seen, gone=gone):
            self._written += plan.moved
            self._foretell_removal(plan.doomed)
        if gone:
            self._foretell_removal(self.store.versions(sorted(gone)))
        self._deleted_chunks = sum(self._would_delete.values())

    def _foretell_removal(self, versions: Iterable[DocumentVersion]) -> None:
        """Counts their chunks once, for whatever reasons they would go."""
        self._would_delete.update(
            {(version.document_id, version.content_hash): version.present for version in versions}
        )

    def _report(self, message: str = "") -> None:
        """Between two steps: what is written is whole, so that the ingest may end here."""
        deadline.check()
        if self.progress is not None:
            done, total = self._files
            self.progress(Progress(done, total, len(self._seen), self._written, message))


def _fits(value: object, levels: int) -> bool:
    """Whether nothing in it lies deeper."""
    within: Iterable[object] = ()
    if isinstance(value, Mapping):
        within = value.values()
    elif isinstance(value, list | tuple):
        within = value
    return all(levels > 0 and _fits(one, levels - 1) for one in within if isinstance(one, Mapping | list | tuple))


def _peak_mb() -> float | None:
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB on Linux
