"""``rag calibrate``: fits the map from a reranker's raw scores to probabilities of relevance on labelled queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.build import build_embedder, build_reranker, calibration_dir
from pipeline.calibration import Calibration, Method, save_calibration
from pipeline.closing import close
from pipeline.core import Pipeline
from pipeline.errors import SettingsError
from pipeline.evaluation.collection import open_dataset
from pipeline.evaluation.dataset import Dataset
from pipeline.reranking import Scorer
from pipeline.scoring import logit
from pipeline.settings import Settings
from pipeline.types import ScoreScale

# Fewer relevant pairs than this and the curve is mostly chance.
_FEW = 50
_BINS = 10


@dataclass(frozen=True, slots=True)
class Pairs:
    """Candidates of labelled queries with what the reranker said: arrays of the same length.

    Those of a query stand together, in the order of its hits.
    """

    query: NDArray[np.int64]
    """Number of the query; it rises."""
    raw: NDArray[np.float64]
    """Raw score."""
    probability: NDArray[np.float64]
    """The reranker's own probability."""
    relevant: NDArray[np.bool_]
    repeated: NDArray[np.bool_] | None = None
    """Chunks of a relevant document beside its best one: hits, but nothing to learn from. None: there are none."""

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def once(self) -> NDArray[np.bool_]:
        """Which of them are learned from."""
        return np.ones(len(self), dtype=bool) if self.repeated is None else ~self.repeated

    def only(self, wanted: NDArray[np.bool_]) -> Pairs:
        """Those of them that are wanted and learned from."""
        rows = wanted & self.once
        return Pairs(self.query[rows], self.raw[rows], self.probability[rows], self.relevant[rows])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a calibration came to."""

    calibration: Calibration
    path: Path
    pairs: Pairs
    after: NDArray[np.float64]
    """Probability of each pair, from a map that was fitted without its query."""
    top_k: int
    """How many hits a query returns."""

    def to_dict(self) -> dict[str, Any]:
        """As ``rag calibrate --json`` prints it."""
        once, threshold = self.pairs.once, self.calibration.threshold
        relevant = self.pairs.relevant[once]
        before, after = (
            precision_recall(self.pairs, probability, (0.5,), self.top_k)[0][1]
            for probability in (self.pairs.probability, self.after)
        )
        at = () if threshold is None else (threshold,)
        kept = [kept for _, _, kept in precision_recall(self.pairs, self.after, at, self.top_k)]
        return {
            **self.calibration.to_dict(),
            "top_k": self.top_k,
            "relevant_kept": kept[0] if kept else None,
            "file": str(self.path),
            "calibration_error": {
                "before": calibration_error(self.pairs.probability[once], relevant),
                "after": calibration_error(self.after[once], relevant),
            },
            "precision_at_half": {"before": before, "after": after},
        }


def calibrate_dataset(
    name: str,
    settings: Settings,
    *,
    method: Method = "platt",
    precision: float = 0.9,
    max_queries: int | None = None,
    say: Callable[[str], None],
) -> Outcome:
    """Fits the reranker of the settings on a labelled dataset and keeps the map in the data directory.

    What is said of its quality comes from two maps, each fitted on one half of the queries and tried on the other;
    what is kept is fitted on all of them. Candidates without a judgement count as irrelevant, as in nDCG.

    Raises:
        SettingsError: there is no such dataset, there is no reranker, it does not say which model it runs, too
            little is relevant, or its scores do not rise with relevance.
    """
    reranker = build_reranker(settings)
    if reranker is None:
        raise SettingsError("RAG_RERANKER=none has no scores to calibrate: choose a reranker with --reranker")
    embedder = build_embedder(settings)
    with ExitStack() as open_parts:
        open_parts.callback(close, embedder, reranker)
        scorer = Scorer(reranker, tokenizer=embedder.tokenizer)
        if not hasattr(reranker, "load"):  # else it may know only then: a model of the hub has no revision before
            _identity(scorer)
        dataset, store = open_dataset(name, settings, embedder, max_queries=max_queries, say=say)
        open_parts.callback(store.close)
        rag = Pipeline(
            embedder=embedder,
            store=store,
            reranker=reranker,
            search=settings.search,
            hybrid_fusion=settings.hybrid_fusion,
            top_n=settings.top_n,
            top_k=settings.top_n,
            alpha=settings.alpha,
            fusion=settings.fusion,
            chunk_tokens=settings.chunk_tokens,
            chunk_overlap=settings.chunk_overlap,
        )
        pairs = judged_pairs(rag, dataset, say)
    identity = _identity(scorer)
    learned = pairs.only(pairs.once)
    relevant = int(learned.relevant.sum())
    if relevant < _FEW:
        say(f"only {relevant} relevant candidates: the result is a rough guess (better: {_FEW} and more)")
    points = fit(learned, reranker.scale, method)
    after = cross_fitted(pairs, reranker.scale, method)
    calibration = Calibration(
        reranker=identity,
        method=method,
        points=points,
        dataset=dataset.name,
        queries=len(dataset.queries),
        pairs=len(learned),
        relevant=relevant,
        threshold=lowest_threshold(pairs, after, precision, settings.top_k),
        precision=precision,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return Outcome(calibration, save_calibration(calibration_dir(settings), calibration), pairs, after, settings.top_k)


def _identity(scorer: Scorer) -> str:
    """What the map is kept for."""
    if scorer.identity is None:
        raise SettingsError(
            f"reranker {scorer.reranker.name} does not say which model it runs, so nothing can be kept for it: name "
            "the model (RAG_RERANKER=http with RAG_RERANKER_MODEL, or the attribute identity in one of your own)"
        )
    return scorer.identity


def judged_pairs(rag: Pipeline, dataset: Dataset, say: Callable[[str], None]) -> Pairs:
    """All candidates of all queries with their scores; of a relevant document the best chunk is the one meant."""
    rows: list[tuple[int, float, float, bool, bool]] = []
    for number, (id_, text) in enumerate(dataset.queries.items()):
        if number and number % 100 == 0:
            say(f"{number} of {len(dataset.queries)} queries")
        grades = dataset.qrels[id_]
        judged = [(hit.rerank, hit.document_id) for hit in rag.query(text).hits if hit.rerank is not None]
        best: dict[str, int] = {}
        for place, (score, document) in enumerate(judged):
            if document not in best or score.raw > judged[best[document]][0].raw:
                best[document] = place
        for place, (score, document) in enumerate(judged):
            relevant = grades.get(document, 0) > 0
            rows.append((number, score.raw, score.probability, relevant, relevant and best[document] != place))
    queries, raw, probability, marks, again = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    pairs = Pairs(
        np.array(queries),
        np.array(raw),
        np.array(probability),
        np.array(marks, dtype=bool),
        np.array(again, dtype=bool),
    )
    if not pairs.relevant.any() or pairs.relevant.all():
        raise SettingsError(
            f"{dataset.name}: {'no' if len(pairs) == 0 or not pairs.relevant.any() else 'every'} candidate is "
            "relevant; a calibration needs both kinds"
        )
    return pairs


def fit(pairs: Pairs, scale: ScoreScale, method: Method) -> tuple[tuple[float, float], ...]:
    """The points of :class:`~pipeline.calibration.Calibration`.

    Raises:
        SettingsError: scores do not rise with relevance.
    """
    x = _logits(pairs, scale)
    # Platt's targets (1999; Lin, Lin and Weng, 2007): with 0 and 1 a curve over few pairs, which one score may tell
    # apart without a mistake, rises without end, and claims a certainty that no sample gives.
    relevant = int(pairs.relevant.sum())
    target = np.where(pairs.relevant, (relevant + 1) / (relevant + 2), 1 / (len(pairs) - relevant + 2))
    if method == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        rising = IsotonicRegression(out_of_bounds="clip", increasing=True).fit(x, target)
        points = tuple(zip(rising.X_thresholds_.tolist(), rising.y_thresholds_.tolist(), strict=True))
        rises = points[-1][1] > points[0][1]
    else:
        from sklearn.linear_model import LogisticRegression

        # Each pair counts as relevant with the weight of its target, and as irrelevant with the rest.
        curve = LogisticRegression(C=np.inf, solver="newton-cholesky").fit(
            np.concatenate([x, x])[:, None],
            np.repeat([True, False], len(pairs)),
            sample_weight=np.concatenate([target, 1 - target]),
        )
        points = ((float(curve.coef_[0, 0]), float(curve.intercept_[0])),)
        rises = points[0][0] > 0
    if not rises:
        raise SettingsError("the reranker's scores do not rise with relevance on this dataset: nothing to calibrate")
    return points


def cross_fitted(pairs: Pairs, scale: ScoreScale, method: Method) -> NDArray[np.float64]:
    """Probability of each pair from a map fitted on the other half of the queries.

    On all, if that half lacks a kind, or its scores do not rise with relevance.
    """
    after = np.empty(len(pairs))
    for half in (0, 1):
        mine = pairs.query % 2 == half
        points = _fit_of_half(pairs.only(~mine), pairs.only(pairs.once), scale, method)
        mapped = replace(_NO_CALIBRATION, method=method, points=points)
        after[mine] = [mapped.probability(raw, scale) for raw in pairs.raw[mine].tolist()]
    return after


def _fit_of_half(half: Pairs, pairs: Pairs, scale: ScoreScale, method: Method) -> tuple[tuple[float, float], ...]:
    if half.relevant.any() and not half.relevant.all():
        with suppress(SettingsError):  # few queries may not rise where all of them do
            return fit(half, scale, method)
    return fit(pairs, scale, method)


_NO_CALIBRATION = Calibration("", "platt", ((1.0, 0.0),), "", 0, 0, 0, None, 0.0, "")


def _logits(pairs: Pairs, scale: ScoreScale) -> NDArray[np.float64]:
    return pairs.raw if scale == "logit" else np.array([logit(p) for p in pairs.raw.tolist()])


def shown(pairs: Pairs, probability: NDArray[np.float64], threshold: float, top_k: int) -> NDArray[np.bool_]:
    """Which pairs are hits: of each query the first ``top_k`` with at least this probability."""
    passed = probability >= threshold
    count = np.cumsum(passed)
    # What passed of the queries before does not count.
    earlier = np.append(0, count)[np.searchsorted(pairs.query, pairs.query)]
    hits: NDArray[np.bool_] = passed & (count - earlier <= top_k)
    return hits


def lowest_threshold(
    pairs: Pairs, probability: NDArray[np.float64], precision: float, top_k: int, least: int = 10
) -> float | None:
    """Lowest threshold with which the wanted share of the hits is relevant, counted on ``least`` hits or more.

    None if there is none.
    """
    for threshold in np.unique(np.floor(probability * 1e3) / 1e3).tolist():
        hits = pairs.relevant[shown(pairs, probability, threshold, top_k)]
        if len(hits) >= least and hits.mean() >= precision:
            return float(threshold)
    return None


def reliability(
    probability: NDArray[np.float64], relevant: NDArray[np.bool_], bins: int = _BINS
) -> list[tuple[float, float, int]]:
    """Mean probability, share of relevant ones, and number of pairs, for each bin of equal width that has any."""
    places = np.minimum((probability * bins).astype(int), bins - 1)
    return [
        (float(probability[here].mean()), float(relevant[here].mean()), int(here.sum()))
        for here in (places == place for place in range(bins))
        if here.any()
    ]


def calibration_error(probability: NDArray[np.float64], relevant: NDArray[np.bool_], bins: int = _BINS) -> float:
    """Expected calibration error: the mean distance of the bins of :func:`reliability` from the diagonal, weighted by
    their pairs (Naeini, Cooper and Hauskrecht, AAAI 2015)."""
    total = sum(count * abs(said - true) for said, true, count in reliability(probability, relevant, bins))
    return round(total / len(probability), 5)


def precision_recall(
    pairs: Pairs, probability: NDArray[np.float64], thresholds: Sequence[float], top_k: int
) -> list[tuple[float, float | None, float | None]]:
    """For each threshold the share of relevant ones among the hits, and the share of the relevant hits that it keeps.

    None where there are no hits, or none of them is relevant without a threshold.
    """
    all_relevant = pairs.relevant[shown(pairs, probability, 0.0, top_k)].sum()
    found: list[tuple[float, float | None, float | None]] = []
    for threshold in thresholds:
        hits = pairs.relevant[shown(pairs, probability, threshold, top_k)]
        precision = round(float(hits.mean()), 4) if len(hits) else None
        found.append((threshold, precision, round(float(hits.sum() / all_relevant), 4) if all_relevant else None))
    return found
