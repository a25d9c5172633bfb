"""Every query of a dataset through every run, by the real pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

from pipeline.build import build_cascade, build_embedder, build_reranker, calibration_dir, reads_for_reranker
from pipeline.calibration import Calibration, load_calibration
from pipeline.cascade import Cascade
from pipeline.closing import close
from pipeline.core import Pipeline
from pipeline.errors import RerankerError
from pipeline.evaluation.collection import Say, open_dataset
from pipeline.evaluation.dataset import Dataset
from pipeline.evaluation.memo import RememberedEmbedder, RememberedReranker, RememberedStore
from pipeline.evaluation.metrics import METRICS, metrics_by_query
from pipeline.evaluation.plan import RECALL_DEPTH, RunSpec
from pipeline.interfaces import Embedder, Reranker, Store
from pipeline.reranking import Scorer
from pipeline.settings import Settings
from pipeline.types import Hit, QueryResult, SearchMode

_SAY_EVERY_S = 10.0
STAGES = ("embed", "search", "rerank")


@dataclass(frozen=True, slots=True)
class Answer:
    """What one run made of one query. A document's place is that of its best chunk."""

    ranking: tuple[str, ...]
    """Documents, best first; without those below the threshold."""
    first: tuple[str, ...]
    """All candidates' documents in the order of the first stage."""
    scores: tuple[tuple[str, float], ...]
    """(document, rerank probability) of each candidate chunk; empty without a reranker."""
    texts: Mapping[str, str]
    """Document -> its best chunk, for the first hit and for the relevant documents that were recalled."""
    hits: int
    """Chunks that passed the threshold."""
    latency_ms: Mapping[str, float]
    """By stage, and "total"."""
    tokens: int
    """Sent to the reranker, counted by the embedder's tokenizer; 0 where they were not asked for."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run over all queries."""

    spec: RunSpec
    alpha: float | None
    """The weight that was in force; None without a reranker."""
    answers: Mapping[str, Answer]
    values: Mapping[str, Mapping[str, float]]
    """Metric -> query -> value."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All runs over one dataset."""

    dataset: Dataset
    documents: int
    runs: Sequence[RunResult]
    first_stages: Mapping[SearchMode, RunResult]
    """Search mode -> its first stage alone, as deep as the deepest run and at least 100 chunks."""
    settings: Settings
    embedder: str
    failed: Mapping[RunSpec, RerankerError] = field(default_factory=dict)
    """Runs whose reranker failed at a query after it had answered others: they are not among ``runs``."""
    whole_documents: bool = False
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    """Those that were in force, by the reranker's name."""

    @property
    def chunking(self) -> str:
        """How the documents were cut, in words."""
        return "whole documents" if self.whole_documents else f"chunks of {self.settings.chunk_tokens} tokens"


def evaluate(
    name: str,
    settings: Settings,
    specs: Sequence[RunSpec],
    *,
    metrics: Mapping[str, str] = METRICS,
    max_queries: int | None = None,
    whole_documents: bool = False,
    check: Callable[[Dataset], object] | None = None,
    say: Say,
) -> Evaluation:
    """Runs every spec over the dataset called ``name`` (see :func:`pipeline.evaluation.collection.open_dataset`).

    Query by query, all runs one after the other: what the machine does meanwhile touches all of them alike. ``check``
    may refuse the dataset before any run.

    Raises:
        SettingsError: there is no such dataset or reranker, or the dataset's parts do not belong together.
        StoreError, EmbedderError: that part failed.
        RerankerError: a reranker failed at the first query, or all of them did at some query.
    """
    # Built before any work, so that a wrong name or a missing key is found at once.
    asked = {spec.reranker: settings.with_reranker(spec.reranker) for spec in specs}
    rerankers = {name: build_reranker(one) for name, one in asked.items()}
    cascades = {name: build_cascade(one) for name, one in asked.items()}
    embedder = build_embedder(next(filter(reads_for_reranker, asked.values()), settings))
    with ExitStack() as open_parts:
        quick = [cascade.reranker for cascade in cascades.values() if cascade is not None]
        open_parts.callback(close, embedder, *quick, *rerankers.values())
        dataset, store = open_dataset(
            name, settings, embedder, max_queries=max_queries, whole_documents=whole_documents, say=say
        )
        open_parts.callback(store.close)
        if check is not None:
            check(dataset)
        say(f"{dataset.name}: {len(specs)} runs of {len(dataset.queries)} queries")
        found = run_all(dataset, settings, specs, embedder, store, rerankers, cascades, metrics=metrics, say=say)
        return replace(found, whole_documents=whole_documents)


def run_all(
    dataset: Dataset,
    settings: Settings,
    specs: Sequence[RunSpec],
    embedder: Embedder,
    store: Store,
    rerankers: Mapping[str, Reranker | None],
    cascades: Mapping[str, Cascade | None] | None = None,
    *,
    metrics: Mapping[str, str] = METRICS,
    say: Say,
) -> Evaluation:
    """:func:`evaluate` over parts that are there already; ``cascades`` are those of the rerankers, by their names."""
    depth = max(RECALL_DEPTH, *(spec.top_n for spec in specs))
    modes = dict.fromkeys(spec.search for spec in specs)
    firsts = {mode: RunSpec(mode, "none", depth) for mode in modes}
    parts = _Parts(settings, embedder, store, rerankers, cascades or {})
    answers: dict[RunSpec, dict[str, Answer]] = {spec: {} for spec in (*specs, *firsts.values())}
    # Those that embed the query come first: the others must not find what was read of it then (see _Parts.query).
    order = sorted(answers, key=lambda spec: not _embeds(spec))
    parts.warm_up(order, next(iter(dataset.queries.values())))
    failed: dict[RunSpec, RerankerError] = {}
    said = time.monotonic()
    for done, (id_, text) in enumerate(dataset.queries.items()):
        if time.monotonic() - said > _SAY_EVERY_S:
            said = time.monotonic()
            say(f"{done} of {len(dataset.queries)} queries")
        relevant = {document for document, grade in dataset.qrels[id_].items() if grade > 0}
        for spec in order:
            if spec in failed:
                continue
            try:
                answers[spec][id_] = parts.answer(spec, text, relevant)
            except RerankerError as error:
                failed[spec] = error
                say(f"{spec.label} failed at query {id_} and is left out: {error}")
                if failed.keys() >= set(specs):
                    raise
        parts.forget()

    def result(spec: RunSpec) -> RunResult:
        rankings = {id_: answer.ranking for id_, answer in answers[spec].items()}
        return RunResult(spec, parts.alpha(spec), answers[spec], metrics_by_query(dataset.qrels, rankings, metrics))

    return Evaluation(
        dataset=dataset,
        documents=store.count().documents,
        runs=[result(spec) for spec in specs if spec not in failed],
        first_stages={mode: result(spec) for mode, spec in firsts.items()},
        settings=settings,
        embedder=embedder.name,
        failed=failed,
        calibrations=parts.calibrations(),
    )


class _Parts:
    """The pipelines of all runs, over shared parts that remember."""

    def __init__(
        self,
        settings: Settings,
        embedder: Embedder,
        store: Store,
        rerankers: Mapping[str, Reranker | None],
        cascades: Mapping[str, Cascade | None],
    ) -> None:
        self._settings = settings
        self._embedder = RememberedEmbedder(embedder)
        self._store = RememberedStore(store)
        self._rerankers = {
            name: None if reranker is None else RememberedReranker(reranker) for name, reranker in rerankers.items()
        }
        self._quick = {
            name: RememberedReranker(cascade.reranker) for name, cascade in cascades.items() if cascade is not None
        }
        # All hits are looked at, but the cascade is to be that of a query with the settings.
        self._cascades = {
            name: replace(cascade, reranker=self._quick[name], least=settings.top_k)
            for name, cascade in cascades.items()
            if cascade is not None
        }
        self._pipelines: dict[RunSpec, Pipeline] = {}

    def warm_up(self, specs: Iterable[RunSpec], text: str) -> None:
        """Loads what is loaded at the first call: that is no part of a query's latency."""
        for spec in specs:
            self.query(spec, text)
        self.forget()

    def forget(self) -> None:
        for part in (self._embedder, self._store, *self._rerankers.values(), *self._quick.values()):
            if part is not None:
                part.forget()

    def query(self, spec: RunSpec, text: str, *, threshold: float | None = None) -> QueryResult:
        """The run's answer. In a run that does not embed the query, the reranker must read it, as it would alone."""
        for part in (*self._rerankers.values(), *self._quick.values()):
            if part is not None:
                part.embedded = _embeds(spec)
        forget_queries = getattr(self._embedder, "forget_queries", None)
        if not _embeds(spec) and forget_queries is not None:
            forget_queries()
        return self._pipeline(spec).query(text, threshold=threshold)

    def alpha(self, spec: RunSpec) -> float | None:
        reranker = self._rerankers.get(spec.reranker)
        if reranker is None:
            return None
        return float(reranker.default_alpha) if spec.alpha is None else spec.alpha

    def calibrations(self) -> dict[str, Calibration]:
        """Of the rerankers that have one, by their names."""
        look_up = partial(load_calibration, calibration_dir(self._settings))
        found = {
            name: Scorer(reranker, tokenizer=self._embedder.tokenizer, calibrations=look_up).calibration
            for name, reranker in self._rerankers.items()
            if reranker is not None
        }
        return {name: calibration for name, calibration in found.items() if calibration is not None}

    def answer(self, spec: RunSpec, text: str, relevant: set[str]) -> Answer:
        reranker = self._rerankers.get(spec.reranker)
        steps = [part for part in (self._quick.get(spec.reranker), reranker) if part is not None]
        timed = [("embed", self._embedder), ("search", self._store), *(("rerank", part) for part in steps)]
        for _, part in timed:
            part.ms = part.spent_ms = 0.0
        if reranker is not None:
            # It is not asked where nothing was recalled.
            reranker.texts = []
        result = self.query(spec, text)
        # A stage is more than its part: texts are cut for a reranker, scores are fused. That is done anew each time.
        latency = {stage: result.timings_ms[stage] for stage in STAGES}
        for stage, part in timed:
            latency[stage] += part.ms - part.spent_ms
        # The pipeline's own share: everything that is in no stage.
        rest = result.timings_ms["total"] - sum(result.timings_ms[stage] for stage in STAGES)
        hits = result.hits
        if spec.threshold is not None:
            # Everything is remembered, so this is the order alone.
            hits = self.query(spec, text, threshold=spec.threshold).hits
        tokens = self._tokens(text, reranker.texts) if reranker is not None else 0
        return _answer(result, hits, relevant, {**latency, "total": sum(latency.values()) + rest}, tokens)

    def _tokens(self, query: str, texts: Sequence[str]) -> int:
        if self._settings.rerank_token_price is None:
            return 0
        tokenizer = self._embedder.tokenizer
        encoded = tokenizer.encode_batch([query, *texts], add_special_tokens=False)
        # A cross-encoder reads the query with every text.
        return sum(len(text.ids) for text in encoded[1:]) + len(encoded[0].ids) * len(texts)

    def _pipeline(self, spec: RunSpec) -> Pipeline:
        if spec not in self._pipelines:
            self._pipelines[spec] = Pipeline(
                embedder=self._embedder,
                store=self._store,
                reranker=self._rerankers.get(spec.reranker),
                cascade=self._cascades.get(spec.reranker),
                search=spec.search,
                hybrid_fusion=self._settings.hybrid_fusion,
                top_n=spec.top_n,
                top_k=spec.top_n,
                alpha=spec.alpha,
                fusion=self._settings.fusion,
                calibrations=partial(load_calibration, calibration_dir(self._settings)),
                chunk_tokens=self._settings.chunk_tokens,
                chunk_overlap=self._settings.chunk_overlap,
            )
        return self._pipelines[spec]


def _embeds(spec: RunSpec) -> bool:
    return spec.search != "sparse"


def _answer(
    result: QueryResult, passed: Sequence[Hit], relevant: set[str], latency: dict[str, float], tokens: int
) -> Answer:
    texts: dict[str, str] = {}
    for hit in result.hits:
        if hit.rank == 1 or hit.document_id in relevant:
            texts.setdefault(hit.document_id, hit.chunk.full_text)
    return Answer(
        ranking=unique_documents(passed),
        first=unique_documents(sorted(result.hits, key=lambda hit: hit.first_stage.rank)),
        scores=tuple((hit.document_id, hit.rerank.probability) for hit in result.hits if hit.rerank is not None),
        texts=texts,
        hits=len(passed),
        latency_ms=latency,
        tokens=tokens,
    )


def unique_documents(hits: Iterable[Hit]) -> tuple[str, ...]:
    """Document ids in the order of their best chunk."""
    return tuple(dict.fromkeys(hit.document_id for hit in hits))
