"""One ingest: read, compare with the ledger, chunk, embed, write, tidy up.

Three threads overlap: one reads files, the caller's chunks and embeds, one writes. The order of writes is what
makes a crash harmless: all chunks of a document's new version first, then the removal of its old version.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import SettingsError
from pipeline.ingestion.changes import by_document, compare, plan_prune
from pipeline.ingestion.chunking import Chunker
from pipeline.ingestion.loaders import MAX_BYTES
from pipeline.ingestion.reading import read
from pipeline.ingestion.stages import read_ahead, write_behind
from pipeline.interfaces import Embedder, Store
from pipeline.types import Chunk, Document, Failure, Fingerprint, IngestReport

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Chunks embedded at once: the engine sorts them by length, so more of them means less padding.
_EMBED_CHUNKS = 512
_REPEATED_SHOWN = 20


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
class _Write:
    """What the writing thread does in one go: first the chunks, then the removal of other versions."""

    chunks: list[Chunk]
    vectors: NDArray[np.float32] | None
    finished: dict[str, str]
    """Document id -> content hash, where other versions are in the store and this one is now complete."""


@dataclass
class IngestRun:
    """State of one ingest. ``execute`` may be called once."""

    embedder: Embedder
    store: Store
    chunker: Chunker
    fingerprint: Fingerprint
    max_bytes: int = MAX_BYTES
    dry_run: bool = False
    progress: Callable[[Progress], None] | None = None

    _counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("new", "changed", "unchanged"), 0))
    _written: int = 0
    _deleted_chunks: int = 0
    _failures: list[Failure] = field(default_factory=list)
    _warnings: list[str] = field(default_factory=list)
    _repeated: set[str] = field(default_factory=set)
    _seen: dict[str, str] = field(default_factory=dict)
    _pending: list[Chunk] = field(default_factory=list)
    _finished: dict[str, str] = field(default_factory=dict)
    _ready: bool = False
    _files: tuple[int, int] = (0, 0)

    def execute(
        self, items: Iterable[Document | str | Path], *, prune: bool = False, max_delete: float = 0.2
    ) -> IngestReport:
        """Runs the ingest and says what it did."""
        start = time.perf_counter()
        roots: list[str] = []
        with (
            read_ahead(read(items, roots, self.max_bytes), size=4) as batches,
            write_behind(self._write, size=4) as put,
        ):
            for batch in batches:
                self._files = (batch.files_done, batch.files_total)
                self._note_repeated(batch.repeated)
                self._take(batch.items, put)
                self._report()
            self._flush(put)
        if not self._seen and not self._failures:
            self._warnings.append("nothing to ingest: no files there (hidden ones are left out)")
        if len(self._repeated) > _REPEATED_SHOWN:
            self._warnings.append(f"{len(self._repeated) - _REPEATED_SHOWN} more ids were given more than once")
        deleted = self._prune(roots, max_delete) if prune else 0
        if (self._written or self._deleted_chunks) and not self.dry_run:
            self.store.optimize(self._report)
        return IngestReport(
            **self._counts,
            deleted=deleted,
            chunks_written=self._written,
            chunks_deleted=self._deleted_chunks,
            failures=self._failures,
            warnings=self._warnings,
            seconds=time.perf_counter() - start,
            dry_run=self.dry_run,
        )

    def _take(self, items: list[Document | Failure], put: Callable[[_Write], None]) -> None:
        """Compares a batch of documents with the ledger and queues the chunks of those that changed."""
        documents = []
        for item in items:
            if isinstance(item, Failure):
                self._failures.append(item)
            else:
                documents.append(item)
        if not documents:
            return
        stored = by_document(self.store.versions([document.id for document in documents]))
        for document in documents:
            content_hash = document.content_hash()
            before = self._seen.get(document.id)
            self._seen[document.id] = content_hash
            if before == content_hash:
                continue
            if before is not None:
                self._note_repeated([document.id])
            change = compare(content_hash, stored.get(document.id, []))
            # What this run wrote for the id before is not in the ledger that was read above.
            stale = change.stale or before is not None
            if change.state == "unchanged" and before is None:
                if stale:
                    self._finished[document.id] = content_hash
            elif not self._queue(document, content_hash, put, stale=stale):
                continue
            if before is None:
                self._counts[change.state] += 1

    def _note_repeated(self, ids: Iterable[str]) -> None:
        for id_ in ids:
            if id_ not in self._repeated:
                self._repeated.add(id_)
                if len(self._repeated) <= _REPEATED_SHOWN:
                    self._warnings.append(f"the id {id_!r} was given more than once: the last one counts")

    def _queue(self, document: Document, content_hash: str, put: Callable[[_Write], None], *, stale: bool) -> bool:
        """Queues a document's chunks; False, with a failure noted, if it has none."""
        chunks = self.chunker.chunk(document)
        if not chunks:
            self._failures.append(Failure(document.source, "no text in it"))
            return False
        # A document goes to the store as a whole, unless it is too long to be held as one.
        step = len(chunks) if len(chunks) <= self.store.whole_chunks else _EMBED_CHUNKS
        for start in range(0, len(chunks), step):
            self._pending += chunks[start : start + step]
            if len(self._pending) >= _EMBED_CHUNKS:
                self._flush(put)
        if stale:
            self._finished[document.id] = content_hash
        return True

    def _flush(self, put: Callable[[_Write], None]) -> None:
        """Embeds what waits and hands it to the writer."""
        chunks, self._pending = self._pending, []
        finished, self._finished = self._finished, {}
        if self.dry_run:
            self._written += len(chunks)
            return
        if chunks or finished:
            vectors = self.embedder.embed_documents([chunk.full_text for chunk in chunks]) if chunks else None
            put(_Write(chunks, vectors, finished))

    def _write(self, work: _Write) -> None:
        if not self._ready:
            self.store.ensure_ready(self.fingerprint)
            self._ready = True
        if work.vectors is not None:
            self.store.upsert(work.chunks, work.vectors)
            self._written += len(work.chunks)
        if work.finished:
            self._deleted_chunks += self.store.delete_versions_except(work.finished)
        self._report()

    def _prune(self, roots: list[str], max_delete: float) -> int:
        if not roots:
            raise SettingsError("prune needs files or folders to compare with, not documents alone")
        # One that was left out because it is repeated was met, whatever became of the others since.
        met = chain(self._seen, self._repeated)
        plan = plan_prune(self.store.versions(), roots, met, (failure.source for failure in self._failures))
        refusal = plan.refusal(max_delete)
        if refusal is not None:
            self._failures.append(Failure(", ".join(roots), refusal))
            return 0
        if plan.doomed and not self.dry_run:
            self._deleted_chunks += self.store.delete_documents(plan.doomed)
        return len(plan.doomed)

    def _report(self, message: str = "") -> None:
        if self.progress is not None:
            done, total = self._files
            self.progress(Progress(done, total, len(self._seen), self._written, message))
