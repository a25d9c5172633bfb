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
    """Candidates of labelled queries with what the reranker said: three arrays of the same length."""

    query: NDArray[np.int64]
    """Number of the query."""
    raw: NDArray[np.float64]
    """Raw score."""
    probability: NDArray[np.float64]
    """The reranker's own probability."""
    relevant: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.raw)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a calibration came to."""

    calibration: Calibration
    path: Path
    pairs: Pairs
    after: NDArray[np.float64]
    """Probability of each pair, from a map that was fitted without its query."""

    def to_dict(self) -> dict[str, Any]:
        """As ``rag calibrate --json`` prints it."""
        relevant = self.pairs.relevant
        return {
            **self.calibration.to_dict(),
            "file": str(self.path),
            "calibration_error": {
                "before": calibration_error(self.pairs.probability, relevant),
                "after": calibration_error(self.after, relevant),
            },
            "precision_at_half": {
                "before": precision_over(self.pairs.probability, relevant, 0.5),
                "after": precision_over(self.after, relevant, 0.5),
            },
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
            chunk_tokens=settings.chunk_tokens,
            chunk_overlap=settings.chunk_overlap,
        )
        pairs = judged_pairs(rag, dataset, say)
    identity = _identity(scorer)
    if pairs.relevant.sum() < _FEW:
        say(f"only {pairs.relevant.sum()} relevant candidates: the result is a rough guess (better: {_FEW} and more)")
    points = fit(pairs, reranker.scale, method)
    after = cross_fitted(pairs, reranker.scale, method)
    calibration = Calibration(
        reranker=identity,
        method=method,
        points=points,
        dataset=dataset.name,
        queries=len(dataset.queries),
        pairs=len(pairs),
        relevant=int(pairs.relevant.sum()),
        threshold=lowest_threshold(after, pairs.relevant, precision),
        precision=precision,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return Outcome(calibration, save_calibration(calibration_dir(settings), calibration), pairs, after)


def _identity(scorer: Scorer) -> str:
    """What the map is kept for."""
    if scorer.identity is None:
        raise SettingsError(
            f"reranker {scorer.reranker.name} does not say which model it runs, so nothing can be kept for it: name "
            "the model (RAG_RERANKER=http with RAG_RERANKER_MODEL, or the attribute identity in one of your own)"
        )
    return scorer.identity


def judged_pairs(rag: Pipeline, dataset: Dataset, say: Callable[[str], None]) -> Pairs:
    """All candidates of all queries with their scores; of a relevant document only the best chunk, the one meant."""
    rows: list[tuple[int, float, float, bool]] = []
    for number, (id_, text) in enumerate(dataset.queries.items()):
        if number and number % 100 == 0:
            say(f"{number} of {len(dataset.queries)} queries")
        grades = dataset.qrels[id_]
        seen: set[str] = set()
        judged = [(hit.rerank, hit.document_id) for hit in rag.query(text).hits if hit.rerank is not None]
        for score, document in sorted(judged, key=lambda pair: -pair[0].raw):
            relevant = grades.get(document, 0) > 0
            if not (relevant and document in seen):
                rows.append((number, score.raw, score.probability, relevant))
            seen.add(document)
    queries, raw, probability, marks = zip(*rows, strict=True) if rows else ((), (), (), ())
    pairs = Pairs(np.array(queries), np.array(raw), np.array(probability), np.array(marks, dtype=bool))
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
    if method == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        # 0 and 1 would claim a certainty that no sample gives; this is Laplace's estimate for a value never seen.
        margin = 1.0 / (len(pairs) + 2)
        rising = IsotonicRegression(y_min=margin, y_max=1 - margin, out_of_bounds="clip", increasing=True)
        rising.fit(x, pairs.relevant.astype(float))
        points = tuple(zip(rising.X_thresholds_.tolist(), rising.y_thresholds_.tolist(), strict=True))
        rises = points[-1][1] > points[0][1]
    else:
        from sklearn.linear_model import LogisticRegression

        curve = LogisticRegression(C=np.inf).fit(x[:, None], pairs.relevant)
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
        others = Pairs(*(column[~mine] for column in (pairs.query, pairs.raw, pairs.probability, pairs.relevant)))
        points = _fit_of_half(others, pairs, scale, method)
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


def precision_over(probability: NDArray[np.float64], relevant: NDArray[np.bool_], threshold: float) -> float | None:
    """Share of relevant ones among the pairs with at least this probability; None if there are none."""
    over = probability >= threshold
    return round(float(relevant[over].mean()), 4) if over.any() else None


def lowest_threshold(
    probability: NDArray[np.float64], relevant: NDArray[np.bool_], precision: float, least: int = 10
) -> float | None:
    """Lowest threshold over which the wanted share is relevant, counted on ``least`` pairs or more; None if none."""
    down = np.argsort(-probability, kind="stable")
    kept = np.arange(1, len(down) + 1)
    reached = (np.cumsum(relevant[down]) / kept >= precision) & (kept >= least)
    # A threshold takes all pairs of the same probability along.
    last_of_ties = np.append(np.diff(probability[down]) != 0, True)
    places = np.flatnonzero(reached & last_of_ties)
    return float(np.floor(probability[down][places[-1]] * 1e4) / 1e4) if len(places) else None


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
    probability: NDArray[np.float64], relevant: NDArray[np.bool_], thresholds: Sequence[float]
) -> list[tuple[float, float | None, float]]:
    """(threshold, precision, recall among the candidates) for each threshold."""
    return [
        (t, precision_over(probability, relevant, t), float(relevant[probability >= t].sum() / relevant.sum()))
        for t in thresholds
    ]
