"""The pipeline: ingest and query, over whatever embedder, store and reranker it was given."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import replace
from functools import partial
from itertools import chain
from numbers import Integral, Real
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack, get_args

from pipeline.answering import answer, complete_versions
from pipeline.asynchronous import in_thread, until_cancelled
from pipeline.calibration import Calibration
from pipeline.cascade import Cascade, rerank_candidates
from pipeline.closing import close
from pipeline.deadline import LONGEST_S
from pipeline.embedding import dimension_of, embed_documents, embed_query
from pipeline.errors import SettingsError
from pipeline.forking import check_process
from pipeline.ingestion import collection, transfer
from pipeline.ingestion.agreement import refuse_other
from pipeline.ingestion.chunking import Chunker
from pipeline.ingestion.loaders import real_source
from pipeline.ingestion.reading import as_items
from pipeline.ingestion.reindexing import reindex
from pipeline.ingestion.run import IngestRun, Progress
from pipeline.ingestion.verify import verify as verify_store
from pipeline.interfaces import Embedder, Reranker, Store
from pipeline.reports import ExportReport, ImportReport, IngestReport, ReindexReport, VerifyReport
from pipeline.reranking import Reranked, Scorer, without_errors
from pipeline.score_cache import ScoreCache
from pipeline.text import well_formed
from pipeline.types import (
    Candidate,
    Document,
    DocumentVersion,
    Fingerprint,
    Hit,
    HybridFusion,
    QueryResult,
    RerankScore,
    SearchMode,
    StageFusion,
    StoredDocument,
)
from pipeline.where import Where, alternatives
from pipeline.windows import without_limits

if TYPE_CHECKING:
    from pipeline.settings import Settings

# Room that a model's special tokens and prompt need beside the chunk.
_PROMPT_TOKENS = 8
_CHUNKING = frozenset({"chunk_tokens", "chunk_overlap"})


class QueryOptions(TypedDict, total=False):
    """What :meth:`Pipeline.query` takes besides the text."""

    top_n: int | None
    top_k: int | None
    threshold: float | None
    alpha: float | None
    where: Where | None
    deadline_ms: float | None
    per_document: int | None


class IngestOptions(TypedDict, total=False):
    """What :meth:`Pipeline.ingest` takes besides the items."""

    prune: bool
    dry_run: bool
    max_delete: float
    unread: Set[str]
    progress: Callable[[Progress], None] | None


class Pipeline:
    """Two-stage retrieval. Safe to share between threads; close it, or use it in a ``with`` block.

    After a fork it belongs to the parent: in the child every call raises a ForkedError, and :meth:`close` does nothing.

    ``reranker=None`` answers in first-stage order; ``fallbacks`` are asked in turn where it fails. After a ``cascade``
    it reads the best third of the candidates only, or as many as hits are asked for. ``alpha=None`` takes the
    reranker's own default. ``deadline_ms`` is the time that a query may take, in milliseconds: recall is not cut short,
    reranking is. ``per_document`` is the most hits of one document. ``score_cache`` spares scoring what was scored
    before. ``calibrations`` looks up how a reranker (its name, model and revision) maps raw scores to probabilities.
    ``ignored`` folders are not read as a part of others.
    """

    def __init__(
        self,
        *,
        embedder: Embedder,
        store: Store,
        reranker: Reranker | None = None,
        fallbacks: Sequence[Reranker | None] = (),
        cascade: Cascade | None = None,
        search: SearchMode = "hybrid",
        hybrid_fusion: HybridFusion = "convex",
        top_n: int = 50,
        top_k: int = 5,
        threshold: float | None = None,
        alpha: float | None = None,
        fusion: StageFusion = "linear",
        deadline_ms: float | None = None,
        per_document: int | None = None,
        score_cache: ScoreCache | None = None,
        calibrations: Callable[[str], Calibration | None] | None = None,
        chunk_tokens: int = 256,
        chunk_overlap: int = 32,
        max_file_mb: float = 100.0,
        ignored: Sequence[Path] = (),
    ) -> None:
        self._pid = os.getpid()
        self.embedder = embedder
        self.store = store
        self.reranker = reranker
        self.fallbacks = tuple(fallbacks)
        self.score_cache = score_cache
        self.cascade = cascade
        self._least = None if cascade is None else cascade.least
        self._rerankers = (None if cascade is None else cascade.reranker, reranker, *fallbacks)
        self._quick, *self._chain = (
            None
            if one is None
            else Scorer(one, tokenizer=embedder.tokenizer, cache=score_cache, calibrations=calibrations)
            for one in self._rerankers
        )
        self.fallbacks_taken: Counter[str] = Counter()
        """How often each reranker failed and a fallback answered, by the name of the one that failed."""
        self._lock = threading.Lock()
        self.search_mode = search
        self.hybrid_fusion = hybrid_fusion
        self.top_n = top_n
        self.top_k = top_k
        self.threshold = threshold
        self.alpha = alpha
        self.fusion = fusion
        self.deadline_ms = deadline_ms
        self.per_document = per_document
        self._wanted_chunk_tokens = chunk_tokens
        # A chunk that the model would cut is invisible to dense search from the cut on.
        self.chunk_tokens = min(chunk_tokens, embedder.max_tokens - _PROMPT_TOKENS)
        self.chunk_overlap = min(chunk_overlap, (self.chunk_tokens - 1) // 2)
        self.max_file_bytes = int(max_file_mb * 1e6)
        self.ignored = tuple(map(real_source, ignored))
        self._checked = False
        self._loading: threading.Thread | None = None
        # Long documents that the ledger says are complete, until something is written or removed here.
        self._complete: set[tuple[str, str]] = set()
        # Documents whose removal by prune was refused.
        self._refused: set[str] = set()
        self._check(top_n, top_k, threshold, alpha, deadline_ms, per_document)
        for name, word, known in (
            ("search", search, SearchMode),
            ("hybrid_fusion", hybrid_fusion, HybridFusion),
            ("fusion", fusion, StageFusion),
        ):
            if word not in get_args(known):
                raise SettingsError(f"{name} is one of {', '.join(get_args(known))}, not {word!r}")

    @classmethod
    def from_settings(cls, settings: Settings | None = None, *, rerank: bool = True) -> Pipeline:
        """The pipeline that the settings describe; without settings, those of the environment.

        With ``rerank=False`` it has no reranker, as suits a program that only ingests: no key for one is needed.

        Raises:
            SettingsError: a setting is wrong, or a key or model that it needs is missing.
        """
        from pipeline.build import build

        return build(settings, rerank=rerank)

    @property
    def fingerprint(self) -> Fingerprint:
        """What a collection must have been made with to fit this pipeline."""
        return Fingerprint(
            embedder=self.embedder.name,
            dimension=dimension_of(self.embedder),
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
        where: Where | None = None,
        deadline_ms: float | None = None,
        per_document: int | None = None,
    ) -> QueryResult:
        """Recalls ``top_n`` candidates, reranks them, and returns the best ``top_k``.

        Arguments left out come from the pipeline. ``where`` filters on metadata in the first stage (see
        :meth:`pipeline.interfaces.Store.search`). ``threshold`` drops hits whose rerank probability is below it, or
        that were not reranked because of the deadline or a cascade. ``per_document`` is the most hits of one document.

        Raises:
            SettingsError: an argument is wrong.
            FingerprintError: the collection was made with another embedding model.
            StoreError, EmbedderError, RerankerError: that part failed.
        """
        return self._query(
            text,
            0.0,
            top_n=top_n,
            top_k=top_k,
            threshold=threshold,
            alpha=alpha,
            where=where,
            deadline_ms=deadline_ms,
            per_document=per_document,
        )

    def _query(
        self,
        text: str,
        waited: float,
        *,
        top_n: int | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        alpha: float | None = None,
        where: Where | None = None,
        deadline_ms: float | None = None,
        per_document: int | None = None,
    ) -> QueryResult:
        """:meth:`query`, for which somebody has waited some seconds before it could begin."""
        self._check_process()
        top_n = self.top_n if top_n is None else top_n
        # A smaller top_n than the pipeline's top_k asks for fewer hits, and says so by itself.
        top_k = min(self.top_k, top_n) if top_k is None else top_k
        threshold = self.threshold if threshold is None else threshold
        alpha = self.alpha if alpha is None else alpha
        deadline_ms = self.deadline_ms if deadline_ms is None else deadline_ms
        per_document = self.per_document if per_document is None else per_document
        self._check(top_n, top_k, threshold, alpha, deadline_ms, per_document)
        alpha = None if alpha is None else float(alpha)  # NumPy's numbers would make scores that are no JSON
        until = None if deadline_ms is None else time.monotonic() - waited + min(deadline_ms / 1e3, LONGEST_S)
        if not isinstance(text, str):
            raise SettingsError(f"a query is a string, not {type(text).__name__}")
        if not text.strip():
            raise SettingsError("the query is empty: ask something")
        self._check_fingerprint_for_query()
        self._load_reranker()

        start = time.perf_counter()
        # Where there is no collection nothing is embedded: that would load the model, and make a folder for its cache.
        vector = embed_query(self.embedder, text) if self._checked and self.search_mode != "sparse" else None
        embedded = time.perf_counter()
        candidates = []
        if self._checked:
            candidates = self.store.search(
                text, vector, limit=top_n, mode=self.search_mode, fusion=self.hybrid_fusion, where=where
            )
            candidates = complete_versions(candidates, self.store, self._complete)
        searched = time.perf_counter()
        outcome = self._reranked(text, candidates, until, top_k)
        reranked = time.perf_counter()

        if outcome.failures:
            with self._lock:
                self.fallbacks_taken.update(error.provider for error in outcome.failures)
        found = answer(
            candidates,
            outcome,
            top_k=top_k,
            threshold=threshold,
            alpha=alpha,
            fusion=self.fusion,
            deadline_ms=deadline_ms,
            per_document=per_document,
        )
        warnings = [] if candidates else self._why_nothing(where)
        return QueryResult(
            query=text,
            hits=found.hits,
            reranker=found.reranker,
            candidates=len(candidates),
            reranked=found.reranked,
            degraded=found.degraded,
            warnings=warnings + self._unread(text) + found.warnings,
            timings_ms={
                "embed": (embedded - start) * 1e3,
                "search": (searched - embedded) * 1e3,
                "rerank": (reranked - searched) * 1e3,
                "total": (waited + time.perf_counter() - start) * 1e3,
            },
        )

    def _unread(self, text: str) -> list[str]:
        """A warning where the embedding model does not read all of the query."""
        most, text = self.embedder.max_tokens, well_formed(text)
        # A token is hardly ever less than a byte.
        if self.search_mode == "sparse" or len(text.encode()) <= most - _PROMPT_TOKENS:
            return []
        tokens = len(without_limits(self.embedder.tokenizer).encode(text).ids)
        if tokens <= most:
            return []
        return [f"the query has {tokens:,} tokens, and the embedding model reads the first {most:,}: shorten it"]

    def _why_nothing(self, where: Where | None) -> list[str]:
        if not self._checked or not self.store.count().chunks:
            return [f"{self.store.name} is empty: ingest documents first"]
        if where and self.search_mode != "sparse":  # BM25 alone finds nothing where no word is shared, too
            keys = dict.fromkeys(chain.from_iterable(alternatives(where)))
            return [f"nothing in {self.store.name} passes the filter on {', '.join(keys)}"]
        return []

    def _reranked(self, text: str, candidates: Sequence[Candidate], until: float | None, top_k: int) -> Reranked:
        if until is not None and self._loading is not None:
            self._loading.join(max(0.0, until - time.monotonic()))
            if self._loading.is_alive():  # a big model may take a minute, or must be fetched first
                nothing: list[RerankScore | None] = [None] * len(candidates)
                return Reranked(self.reranker, nothing, asked=len(nothing), warnings=["the reranker is still loading"])
        return rerank_candidates(text, candidates, self._chain, until, quick=self._quick, least=self._least or top_k)

    async def aquery(self, text: str, **options: Unpack[QueryOptions]) -> QueryResult:
        """:meth:`query` in a thread, for asynchronous programs; it has time until the deadline from this call on."""
        asked = time.monotonic()
        return await in_thread("query", lambda: self._query(text, time.monotonic() - asked, **options))

    # --------------------------------------------------------------- ingest

    def ingest(
        self,
        items: Document | str | Path | Iterable[Document | str | Path],
        *,
        prune: bool = False,
        dry_run: bool = False,
        max_delete: float = 0.2,
        unread: Set[str] = frozenset(),
        progress: Callable[[Progress], None] | None = None,
    ) -> IngestReport:
        """Brings documents, files and folders into the collection; running it twice changes nothing.

        A document that cannot be read is listed in the report and does not stop the others. Chunks of a changed
        document are replaced only after all its new ones are stored. ``prune`` also removes documents whose source
        lay under the given paths and is gone, but not more than the share ``max_delete`` of them. ``dry_run`` only
        says what would be done. ``unread`` are absolute paths of files and folders that are passed over: what is stored
        of them stays. It is for files that an earlier ingest has read and that are as they were.

        Raises:
            SettingsError: a path does not exist or is empty, or an argument is wrong: ``prune`` with documents alone.
            FingerprintError: the collection was made with another model or other chunking.
            StoreError, EmbedderError: that part failed; what was reported as written stays written.
            Exception: what ``progress`` raises ends the ingest and comes out as it is; another one goes on from there.
        """
        self._check_process()
        if not 0.0 <= max_delete <= 1.0:
            raise SettingsError(f"max_delete is a share between 0 and 1, not {max_delete:g}")
        items = as_items(items)
        self.check_collection()
        self._complete.clear()
        run = self._ingest_run(dry_run=dry_run, unread=unread, progress=progress)
        report = run.execute(items, prune=prune, max_delete=max_delete)
        if self._wanted_chunk_tokens > self.embedder.max_tokens:
            report.warnings.append(
                f"chunks have {self.chunk_tokens} tokens at most, not {self._wanted_chunk_tokens}: the embedding model "
                f"reads {self.embedder.max_tokens}"
            )
        return report

    async def aingest(
        self, items: Document | str | Path | Iterable[Document | str | Path], **options: Unpack[IngestOptions]
    ) -> IngestReport:
        """:meth:`ingest` in a thread, for asynchronous programs.

        Where it is cancelled, the ingest ends at its next step, as by an exception of ``progress``, and another one
        goes on from there. That is awaited; cancelled once more, it is not.
        """
        return await until_cancelled("ingest", lambda: self.ingest(items, **options))

    def _ingest_run(
        self,
        *,
        dry_run: bool = False,
        unread: Set[str] = frozenset(),
        progress: Callable[[Progress], None] | None = None,
    ) -> IngestRun:
        return IngestRun(
            embedder=self.embedder,
            store=self.store,
            chunker=Chunker(self.embedder.tokenizer, chunk_tokens=self.chunk_tokens, overlap=self.chunk_overlap),
            fingerprint=self.fingerprint,
            max_bytes=self.max_file_bytes,
            dry_run=dry_run,
            unread=unread,
            ignored=self.ignored,
            progress=progress,
            refused=self._refused,
        )

    # ----------------------------------------------- what is in the collection

    def documents(self, *, where: Where | None = None) -> Iterator[DocumentVersion]:
        """Each document's id, source, content hash and number of chunks; no text, and in no particular order.

        With ``where`` those of which a chunk passes it, as in :meth:`query`. Memory grows with the number of documents.

        Raises:
            SettingsError: at the first document, if ``where`` cannot be understood.
        """
        self._check_process()
        return collection.documents(self.store, where)

    def get(self, document_id: str) -> StoredDocument | None:
        """A document's chunks and metadata as they are stored; None if it is not there.

        Of files with equal content each one's path leads to the one document, whose ``copies`` they are.

        Raises:
            SettingsError: the id is no string.
        """
        self._check_process()
        _check_id(document_id)
        return collection.get(self.store, document_id)

    def context(self, hit: Hit, *, before: int = 1, after: int = 1) -> str:
        """A hit's text with that of so many chunks before and behind it: more for an LLM to read than what was found.

        Where the document was changed or removed since, it is the hit's text alone.

        Raises:
            SettingsError: a number of chunks is below 0.
        """
        self._check_process()
        if before < 0 or after < 0:
            raise SettingsError(f"before and after are numbers of chunks, not {min(before, after)}")
        stored = self.store.fingerprint()
        overlap = self.chunk_overlap if stored is None else stored.chunk_overlap
        return collection.context(self.store, hit.chunk, before, after, overlapping=overlap > 0)

    def delete(self, document_ids: str | Iterable[str] = (), *, where: Where | None = None) -> int:
        """Removes documents by their ids; returns how many of them were there. Unknown ids are no error.

        Of files with equal content, which are stored once, only those that are named go. With ``where`` in the place of
        ids all documents go of which every chunk passes it, under all their names.

        Raises:
            SettingsError: an id is no string, and what was given before it may be removed; or ``where`` cannot be
                understood, is empty, which would remove everything, or is not by metadata.
            FingerprintError: the collection was made with another embedding model, which those that stay may need.
        """
        self._check_process()
        refuse_other(self.store, self.fingerprint, ignore=_CHUNKING)
        self._complete.clear()
        embed = partial(embed_documents, self.embedder)
        if where is not None:
            if document_ids != ():
                raise SettingsError("delete takes the documents' ids, or where=, not both")
            return collection.delete_where(self.store, where, embed)
        # What is neither is refused as an id.
        several = isinstance(document_ids, Iterable) and not isinstance(document_ids, str)
        ids = map(_check_id, document_ids if several else [document_ids])
        return collection.delete(self.store, ids, embed)

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
            SettingsError: a path does not exist or is empty.
            StoreError, EmbedderError: that part failed.
        """
        self._check_process()
        items = as_items(items)
        stored = self.store.fingerprint()
        differences = [] if stored is None else stored.differences(self.fingerprint)
        self._complete.clear()
        mend = self._ingest_run() if repair and not differences else None
        report = verify_store(
            self.store,
            items,
            differences,
            mend=mend,
            max_bytes=self.max_file_bytes,
            ignored=self.ignored,
            progress=progress,
        )
        return replace(report, exists=stored is not None)

    def export_to(
        self, path: str | Path, *, vectors: bool = False, progress: Callable[[Progress], None] | None = None
    ) -> ExportReport:
        """Writes the collection into a file that :meth:`import_from` reads, on this store or another.

        JSON lines, gzipped if the name ends in ``.gz``. With ``vectors`` an import need not embed the texts again.

        Raises:
            SettingsError: there is no collection, or the file cannot be written.
        """
        self._check_process()
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
        self.check_collection()
        self._complete.clear()
        return transfer.import_from(self.store, self.embedder, self.fingerprint, Path(path), progress=progress)

    def reindex(self, *, progress: Callable[[Progress], None] | None = None) -> ReindexReport:
        """Makes the collection anew as this pipeline's embedder and chunk size need it, from the stored texts.

        Other pipelines go on querying the collection as it was, and stay with it after the switch; then they refuse to
        write, and are to be replaced by this one. See :mod:`pipeline.ingestion.reindexing`.

        Raises:
            SettingsError: there is nothing to reindex.
            StoreError, EmbedderError: that part failed; what is built stays, run again it goes on.
        """
        self._check_process()
        self._complete.clear()
        chunker = Chunker(self.embedder.tokenizer, chunk_tokens=self.chunk_tokens, overlap=self.chunk_overlap)
        return reindex(self.store, self.embedder, chunker, self.fingerprint, progress=progress)

    def check_collection(self) -> None:
        """Whether the collection was made as this pipeline would make it; one that is not there yet fits all.

        Raises:
            FingerprintError: it was not; says in what they differ.
        """
        self._check_process()
        refuse_other(self.store, self.fingerprint)

    # ------------------------------------------------------------- lifetime

    def close(self) -> None:
        """Releases files and connections of all parts. Closing twice is fine."""
        if self._pid != os.getpid():  # they are the parent's, and a thread of it may have held one of their locks
            return
        if self._loading is not None:
            self._loading.join()
        close(self.store, self.embedder, *self._rerankers, self.score_cache)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _load_reranker(self) -> None:
        """At the first query, beside the first stage: its answer then waits for the slower of the two only."""
        loads = [one.load for one in self._rerankers[:2] if one is not None and hasattr(one, "load")]
        with self._lock:
            if not loads or self._loading is not None or not self._checked:
                return
            self._loading = threading.Thread(target=without_errors, args=loads, name="load reranker")
            self._loading.start()

    # --------------------------------------------------------------- checks

    def _check_process(self) -> None:
        """Connections that parent and child both use would give one of them the other's answers."""
        check_process(self._pid, "this pipeline")

    @staticmethod
    def _check(
        top_n: int,
        top_k: int,
        threshold: float | None,
        alpha: float | None,
        deadline_ms: float | None,
        per_document: int | None,
    ) -> None:
        counts: dict[str, Any] = {"top_n": top_n, "top_k": top_k}
        if per_document is not None:
            counts["per_document"] = per_document
        numbers: dict[str, Any] = {"threshold": threshold, "alpha": alpha, "deadline_ms": deadline_ms}
        for name, value in (counts | numbers).items():
            kind, what = (Integral, "whole number") if name in counts else (Real, "number")
            if not isinstance(value, kind) and (value is not None or name in counts):
                raise SettingsError(f"{name} is a {what}, not {value!r}")
            try:
                float(value or 0)
            except OverflowError as error:  # an integer beyond all floats
                raise SettingsError(f"{name} is larger than any number that can be counted with") from error
        if not 1 <= top_n <= 1000:
            raise SettingsError(f"top_n must be between 1 and 1000, not {top_n}")
        if not 1 <= top_k <= top_n:
            raise SettingsError(f"top_k must be between 1 and top_n ({top_n}), not {top_k}")
        if per_document is not None and per_document < 1:
            raise SettingsError(f"per_document must be at least 1, not {per_document}; None: no bound")
        for name, value in (("threshold", threshold), ("alpha", alpha)):
            if value is not None and not 0.0 <= value <= 1.0:
                raise SettingsError(f"{name} must be between 0 and 1, not {float(value):g}")
        if deadline_ms is not None and not 0 < deadline_ms < math.inf:
            raise SettingsError(f"deadline_ms must be over 0 and finite, not {float(deadline_ms):g}; None: no deadline")

    def _check_fingerprint_for_query(self) -> None:
        """Once a pipeline: vectors of another model would give wrong answers without any error."""
        if self._checked:
            return
        # How chunks were cut does not matter for finding them.
        self._checked = refuse_other(self.store, self.fingerprint, ignore=_CHUNKING)


def _check_id(document_id: object) -> str:
    if not isinstance(document_id, str):
        raise SettingsError(f"a document's id is a string, not {document_id!r:.100}")
    return document_id
