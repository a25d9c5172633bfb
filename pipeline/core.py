"""The pipeline: ingest and query, over whatever embedder, store and reranker it was given."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pipeline import scoring
from pipeline.errors import FingerprintError, RerankerError, SettingsError
from pipeline.ingestion import collection, transfer
from pipeline.ingestion.changes import answering, by_document
from pipeline.ingestion.chunking import Chunker
from pipeline.ingestion.run import IngestRun, Progress
from pipeline.ingestion.verify import verify as verify_store
from pipeline.interfaces import Embedder, Reranker, Store
from pipeline.reranking import Reranked, rerank
from pipeline.types import (
    Candidate,
    Document,
    DocumentVersion,
    ExportReport,
    Fingerprint,
    FirstStage,
    Hit,
    HybridFusion,
    ImportReport,
    IngestReport,
    QueryResult,
    SearchMode,
    StoredDocument,
    VerifyReport,
)

if TYPE_CHECKING:
    from pipeline.settings import Settings

# Room that a model's special tokens and prompt need beside the chunk.
_PROMPT_TOKENS = 8
_CHUNKING = frozenset({"chunk_tokens", "chunk_overlap"})


class Pipeline:
    """Two-stage retrieval. Safe to share between threads; close it, or use it in a ``with`` block.

    ``reranker=None`` answers in first-stage order; ``fallbacks`` are asked in turn where it fails. ``alpha=None`` takes
    the reranker's own default.
    """

    def __init__(
        self,
        *,
        embedder: Embedder,
        store: Store,
        reranker: Reranker | None = None,
        fallbacks: Sequence[Reranker | None] = (),
        search: SearchMode = "hybrid",
        hybrid_fusion: HybridFusion = "dbsf",
        top_n: int = 50,
        top_k: int = 5,
        threshold: float | None = None,
        alpha: float | None = None,
        chunk_tokens: int = 256,
        chunk_overlap: int = 32,
        max_file_mb: float = 100.0,
    ) -> None:
        self.embedder = embedder
        self.store = store
        self.reranker = reranker
        self.fallbacks = tuple(fallbacks)
        self.fallbacks_taken: Counter[str] = Counter()
        """How often each reranker failed and a fallback answered, by the name of the one that failed."""
        self._lock = threading.Lock()
        self.search_mode = search
        self.hybrid_fusion = hybrid_fusion
        self.top_n = top_n
        self.top_k = top_k
        self.threshold = threshold
        self.alpha = alpha
        # A chunk that the model would cut is invisible to dense search from the cut on.
        self.chunk_tokens = min(chunk_tokens, embedder.max_tokens - _PROMPT_TOKENS)
        self.chunk_overlap = min(chunk_overlap, (self.chunk_tokens - 1) // 2)
        self.max_file_bytes = int(max_file_mb * 1e6)
        self._checked = False
        self._check(top_n, top_k, threshold, alpha)

    @classmethod
    def from_settings(cls, settings: Settings | None = None) -> Pipeline:
        """The pipeline that the settings describe; without settings, those of the environment.

        Raises:
            SettingsError: a setting is wrong, or a key or model that it needs is missing.
        """
        from pipeline.build import build

        return build(settings)

    @property
    def fingerprint(self) -> Fingerprint:
        """What a collection must have been made with to fit this pipeline."""
        return Fingerprint(
            embedder=self.embedder.name,
            dimension=self.embedder.dimension,
            chunk_tokens=self.chunk_tokens,
            chunk_overlap=self.chunk_overlap,
            bm25=self.store.bm25,
        )

    # ---------------------------------------------------------------- query

    def query(
        self,
        text: str,
        *,
        top_n: int | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        alpha: float | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> QueryResult:
        """Recalls ``top_n`` candidates, reranks them, and returns the best ``top_k``.

        Arguments left out come from the pipeline. ``where`` filters on metadata in the first stage (see
        :meth:`pipeline.interfaces.Store.search`). ``threshold`` drops hits whose rerank probability is below it.

        Raises:
            SettingsError: an argument is wrong.
            FingerprintError: the collection was made with another embedding model.
            StoreError, EmbedderError, RerankerError: that part failed.
        """
        top_n = self.top_n if top_n is None else top_n
        # A smaller top_n than the pipeline's top_k asks for fewer hits, and says so by itself.
        top_k = min(self.top_k, top_n) if top_k is None else top_k
        threshold = self.threshold if threshold is None else threshold
        alpha = self.alpha if alpha is None else alpha
        self._check(top_n, top_k, threshold, alpha)
        if not text.strip():
            raise SettingsError("the query is empty: ask something")
        self._check_fingerprint_for_query()

        start = time.perf_counter()
        vector = None if self.search_mode == "sparse" else self.embedder.embed_query(text)
        embedded = time.perf_counter()
        candidates = self.store.search(
            text, vector, limit=top_n, mode=self.search_mode, fusion=self.hybrid_fusion, where=where
        )
        candidates = self._one_version_each(candidates)
        searched = time.perf_counter()
        answer = rerank(text, candidates, [self.reranker, *self.fallbacks])
        reranked = time.perf_counter()

        warnings = []
        if not candidates and not self._checked:
            warnings.append(f"{self.store.name} is empty: ingest documents first")
        degraded = bool(answer.failures)
        if degraded:
            self._count_fallback(answer.failures)
            # Weight and threshold were chosen for the reranker that failed.
            alpha = None
            warnings += [f"reranker {error.provider} failed: {error}" for error in answer.failures]
            warnings.append(f"{answer.name} answered instead")
        if threshold is not None and (degraded or answer.scores is None):
            threshold = None
            because = "it was meant for another reranker" if degraded else "without a reranker there is no probability"
            warnings.append(f"the threshold was not applied: {because}")
        hits = self._hits(candidates, answer, alpha=alpha, threshold=threshold)[:top_k]
        return QueryResult(
            query=text,
            hits=hits,
            reranker=answer.name,
            candidates=len(candidates),
            degraded=degraded,
            warnings=warnings,
            timings_ms={
                "embed": (embedded - start) * 1e3,
                "search": (searched - embedded) * 1e3,
                "rerank": (reranked - searched) * 1e3,
                "total": (time.perf_counter() - start) * 1e3,
            },
        )

    async def aquery(self, text: str, **options: Any) -> QueryResult:
        """:meth:`query` in a thread, for asynchronous programs."""
        return await asyncio.to_thread(self.query, text, **options)

    def _count_fallback(self, failures: Sequence[RerankerError]) -> None:
        with self._lock:
            self.fallbacks_taken.update(error.provider for error in failures)

    @staticmethod
    def _hits(
        candidates: Sequence[Candidate], answer: Reranked, *, alpha: float | None, threshold: float | None
    ) -> list[Hit]:
        rerank = answer.scores
        if answer.reranker is None or rerank is None:
            scores = scoring.first_stage_scores(candidates)
        else:
            weight = answer.reranker.default_alpha if alpha is None else alpha
            scores = scoring.final_scores(candidates, rerank, alpha=weight, scale=answer.reranker.scale)
        order = scoring.order(candidates, scores, rerank)
        if rerank is not None and threshold is not None:
            order = [i for i in order if rerank[i].probability >= threshold]
        return [
            Hit(
                rank=rank,
                chunk=candidates[i].chunk,
                score=scores[i],
                first_stage=FirstStage(candidates[i].rank, candidates[i].score),
                rerank=None if rerank is None else rerank[i],
            )
            for rank, i in enumerate(order, 1)
        ]

    def _one_version_each(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Leaves out chunks of all but one version of a document.

        Two versions stand side by side while a changed document is written, or after such a write was cut off.
        Only a complete one may answer; the ledger knows which is.
        """
        hashes: dict[str, set[str]] = {}
        for candidate in candidates:
            hashes.setdefault(candidate.chunk.document_id, set()).add(candidate.chunk.content_hash)
        doubled = [id_ for id_, versions in hashes.items() if len(versions) > 1]
        if not doubled:
            return list(candidates)
        keep = {}
        for id_, versions in by_document(self.store.versions(doubled)).items():
            keep[id_] = answering(versions).content_hash
        return [
            candidate
            for candidate in candidates
            if keep.get(candidate.chunk.document_id, candidate.chunk.content_hash) == candidate.chunk.content_hash
        ]

    # --------------------------------------------------------------- ingest

    def ingest(
        self,
        items: Document | str | Path | Iterable[Document | str | Path],
        *,
        prune: bool = False,
        dry_run: bool = False,
        max_delete: float = 0.2,
        progress: Callable[[Progress], None] | None = None,
    ) -> IngestReport:
        """Brings documents, files and folders into the collection; running it twice changes nothing.

        A document that cannot be read is listed in the report and does not stop the others. Chunks of a changed
        document are replaced only after all its new ones are stored. ``prune`` also removes documents whose source
        lay under the given paths and is gone, but not more than the share ``max_delete`` of them. ``dry_run`` only
        says what would be done.

        Raises:
            SettingsError: a path does not exist, or an argument is wrong.
            FingerprintError: the collection was made with another model or other chunking.
            StoreError, EmbedderError: that part failed; what was reported as written stays written.
        """
        if not 0.0 <= max_delete <= 1.0:
            raise SettingsError(f"max_delete is a share between 0 and 1, not {max_delete:g}")
        if isinstance(items, Document | str | Path):
            items = [items]
        stored = self.store.fingerprint()
        if stored is not None:
            self._refuse_other(stored, ignore=frozenset())
        run = self._ingest_run(dry_run=dry_run, progress=progress)
        return run.execute(items, prune=prune, max_delete=max_delete)

    async def aingest(self, items: Iterable[Document | str | Path], **options: Any) -> IngestReport:
        """:meth:`ingest` in a thread, for asynchronous programs."""
        return await asyncio.to_thread(self.ingest, items, **options)

    def _ingest_run(self, *, dry_run: bool = False, progress: Callable[[Progress], None] | None = None) -> IngestRun:
        return IngestRun(
            embedder=self.embedder,
            store=self.store,
            chunker=Chunker(self.embedder.tokenizer, chunk_tokens=self.chunk_tokens, overlap=self.chunk_overlap),
            fingerprint=self.fingerprint,
            max_bytes=self.max_file_bytes,
            dry_run=dry_run,
            progress=progress,
        )

    # ----------------------------------------------- what is in the collection

    def documents(self) -> Iterator[DocumentVersion]:
        """Each document's id, source, content hash and number of chunks; no text, and in no particular order.

        Memory grows with the number of documents.
        """
        return collection.documents(self.store)

    def get(self, document_id: str) -> StoredDocument | None:
        """A document's chunks and metadata as they are stored; None if it is not there."""
        return collection.get(self.store, document_id)

    def delete(self, document_ids: str | Iterable[str]) -> int:
        """Removes documents by their ids; returns how many of them were there. Unknown ids are no error."""
        return collection.delete(self.store, [document_ids] if isinstance(document_ids, str) else document_ids)

    def verify(
        self,
        items: Document | str | Path | Iterable[Document | str | Path] = (),
        *,
        repair: bool = False,
        progress: Callable[[Progress], None] | None = None,
    ) -> VerifyReport:
        """Compares the collection's ledger with its chunks, and with documents, files and folders if they are given.

        ``repair`` mends what a cut-off ingest leaves: it removes versions beside the only complete one, and ingests a
        document without a complete version, or with several, again where it is given or its source is a file that
        still holds it. What is then still wrong is in the report. Documents that changed, are new or are gone are
        only reported: :meth:`ingest` is for these.

        Raises:
            SettingsError: a path does not exist.
            StoreError, EmbedderError: that part failed.
        """
        if isinstance(items, Document | str | Path):
            items = [items]
        stored = self.store.fingerprint()
        differences = [] if stored is None else stored.differences(self.fingerprint)
        mend = self._ingest_run() if repair and not differences else None
        return verify_store(self.store, items, differences, mend=mend, max_bytes=self.max_file_bytes, progress=progress)

    def export_to(
        self, path: str | Path, *, vectors: bool = False, progress: Callable[[Progress], None] | None = None
    ) -> ExportReport:
        """Writes the collection into a file that :meth:`import_from` reads, on this store or another.

        JSON lines, gzipped if the name ends in ``.gz``. With ``vectors`` an import need not embed the texts again.

        Raises:
            SettingsError: there is no collection, or the file cannot be written.
        """
        return transfer.export_to(self.store, Path(path), vectors=vectors, progress=progress)

    def import_from(self, path: str | Path, *, progress: Callable[[Progress], None] | None = None) -> ImportReport:
        """Brings the documents of an exported file into the collection; other documents in it stay.

        One that was cut off goes on where it stopped. Vectors of another embedding model are not taken: then the
        texts are embedded again.

        Raises:
            SettingsError: the file cannot be read, or is no export.
            FingerprintError: texts or collection were made with other settings than these.
            DocumentError: the file is damaged or was cut off; what stands before that is imported.
        """
        stored = self.store.fingerprint()
        if stored is not None:
            self._refuse_other(stored, ignore=frozenset())
        return transfer.import_from(self.store, self.embedder, self.fingerprint, Path(path), progress=progress)

    # ------------------------------------------------------------- lifetime

    def close(self) -> None:
        """Releases files and connections of all parts. Closing twice is fine."""
        self.store.close()
        for part in (self.embedder, self.reranker, *self.fallbacks):
            # Only parts that talk to an endpoint hold anything.
            close = getattr(part, "close", None)
            if close is not None:
                close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --------------------------------------------------------------- checks

    @staticmethod
    def _check(top_n: int, top_k: int, threshold: float | None, alpha: float | None) -> None:
        if not 1 <= top_n <= 1000:
            raise SettingsError(f"top_n must be between 1 and 1000, not {top_n}")
        if not 1 <= top_k <= top_n:
            raise SettingsError(f"top_k must be between 1 and top_n ({top_n}), not {top_k}")
        for name, value in (("threshold", threshold), ("alpha", alpha)):
            if value is not None and not 0.0 <= value <= 1.0:
                raise SettingsError(f"{name} must be between 0 and 1, not {value:g}")

    def _check_fingerprint_for_query(self) -> None:
        """Once a pipeline: vectors of another model would give wrong answers without any error."""
        if self._checked:
            return
        stored = self.store.fingerprint()
        if stored is not None:
            # How chunks were cut does not matter for finding them.
            self._refuse_other(stored, ignore=_CHUNKING)
            self._checked = True

    def _refuse_other(self, stored: Fingerprint, *, ignore: frozenset[str]) -> None:
        differences = stored.differences(self.fingerprint, ignore=ignore)
        if differences:
            listed = "; ".join(f"{name}: stored {theirs!r}, asked for {ours!r}" for name, theirs, ours in differences)
            raise FingerprintError(
                f"{self.store.name} was made differently ({listed}). Set the old values again, or ingest into a new "
                "collection: RAG_COLLECTION=<new name> rag ingest <paths>"
            )
