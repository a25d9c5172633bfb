"""Fitting of calibrations, on scores whose truth is known."""

import math
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.calibration import Calibration, Method
from pipeline.core import Pipeline
from pipeline.errors import SettingsError
from pipeline.evaluation.calibration import (
    Outcome,
    Pairs,
    calibrate_dataset,
    calibration_error,
    cross_fitted,
    fit,
    judged_pairs,
    lowest_threshold,
    precision_recall,
    reliability,
    shown,
)
from pipeline.evaluation.dataset import Dataset
from pipeline.evaluation.report.calibration import calibration_page
from pipeline.scoring import sigmoid
from pipeline.settings import Settings
from pipeline.types import Document, ScoreScale
from tests.fakes import FakeEmbedder, FakeReranker, FakeStore


def synthetic(slope: float, offset: float, seed: int, scale: ScoreScale = "logit") -> Pairs:
    """Relevant with probability sigmoid(t); the reranker says slope * t + offset, as logit or as probability."""
    random = Random(seed)
    true = [random.gauss(-2.0, 2.5) for _ in range(8000)]
    relevant = np.array([random.random() < sigmoid(t) for t in true])
    logits = [slope * t + offset for t in true]
    own = np.array([sigmoid(x) for x in logits])
    raw = np.array(logits) if scale == "logit" else own
    return Pairs(np.arange(8000) // 20, raw, own, relevant)


def apart(queries: int) -> Pairs:
    """Few candidates, which a score of 0 tells apart without a mistake."""
    raw = np.array([2.0, -1.0, -3.0, -5.0, -6.0] * queries) + np.repeat(np.linspace(-0.5, 0.5, queries), 5)
    return Pairs(np.repeat(np.arange(queries), 5), raw, np.array([sigmoid(x) for x in raw]), raw > 0)


def over_half(pairs: Pairs, probability: NDArray[np.float64]) -> float:
    """Share of relevant ones among all pairs of at least that probability."""
    return precision_recall(pairs, probability, [0.5], len(pairs))[0][1] or 0.0


@pytest.mark.parametrize("scale", get_args(ScoreScale))
def test_platt_finds_the_curve_that_made_the_labels(scale: ScoreScale) -> None:
    """From logits as from probabilities."""
    ((slope, intercept),) = fit(synthetic(0.5, 3.0, 1, scale), scale, "platt")
    assert slope == pytest.approx(2.0, abs=0.1)
    assert intercept == pytest.approx(-6.0, abs=0.3)


@pytest.mark.parametrize("method", get_args(Method))
def test_a_threshold_means_the_same_for_two_rerankers(method: Method) -> None:
    """One is far too sure of itself and one far too timid; on queries that neither map has seen they agree."""
    bold, timid = synthetic(3.0, 6.0, 1), synthetic(0.3, -1.0, 2, "probability")
    before = [over_half(pairs, pairs.probability) for pairs in (bold, timid)]
    after = []
    for pairs, scale in ((bold, "logit"), (timid, "probability")):
        mapped = cross_fitted(pairs, "logit" if scale == "logit" else "probability", method)
        after.append(over_half(pairs, mapped))
        assert calibration_error(mapped, pairs.relevant) < 0.02 < calibration_error(pairs.probability, pairs.relevant)
    assert abs(before[0] - before[1]) > 0.2
    assert after[0] == pytest.approx(after[1], abs=0.05)


@pytest.mark.parametrize("method", get_args(Method))
def test_scores_that_fall_with_relevance_are_refused(method: Method) -> None:
    """A map that turned them around would hide that the reranker is wrong."""
    with pytest.raises(SettingsError, match="do not rise with relevance"):
        fit(synthetic(-1.0, 0.0, 1), "logit", method)


def test_isotonic_probabilities_have_finite_logits() -> None:
    """0 and 1 would swamp every other score when both stages are fused."""
    points = fit(synthetic(1.0, 0.0, 1), "logit", "isotonic")
    made = Calibration("", "isotonic", points, "", 0, 0, 0, None, 0.9, "")
    ends = [made.probability(raw, "logit") for raw in (-1e9, 1e9)]
    assert 0.0 < ends[0] < ends[1] < 1.0


@pytest.mark.parametrize("method", get_args(Method))
@pytest.mark.parametrize("queries", [1, 2, 5, 10])
def test_few_candidates_give_no_certainty(method: Method, queries: int) -> None:
    """Of n relevant ones alone, a share of (n + 1) / (n + 2) is what Laplace would expect of the next."""
    pairs = apart(queries)
    made = Calibration("", method, fit(pairs, "logit", method), "", 0, 0, 0, None, 0.9, "")
    said = np.array([made.probability(raw, "logit") for raw in pairs.raw])
    assert 0.5 < said[pairs.relevant].min()
    assert said.max() < (queries + 1.5) / (queries + 2)
    assert said[~pairs.relevant].max() < 0.5
    assert said.min() > 1e-4


def test_a_query_returns_the_first_of_what_passes() -> None:
    """So what a threshold drops makes room for the next ones, and other queries take none."""
    pairs = Pairs(np.array([0, 0, 0, 0, 2, 2, 2]), np.zeros(7), np.zeros(7), np.array([True] * 7))
    probability = np.array([0.9, 0.1, 0.8, 0.7, 0.6, 0.1, 0.1])
    assert [True, True, False, False, True, True, False] == shown(pairs, probability, 0.0, 2).tolist()
    assert [True, False, True, False, True, False, False] == shown(pairs, probability, 0.5, 2).tolist()


def test_the_lowest_threshold_reaches_the_precision() -> None:
    """No lower one does, and it is not found on a handful of lucky hits."""
    probability = np.linspace(1, 0, 101)
    pairs = Pairs(
        np.zeros(101, dtype=np.int64), probability, probability, np.array([i < 3 or (10 <= i < 60) for i in range(101)])
    )
    found = lowest_threshold(pairs, probability, 0.8, 101)
    assert found is not None
    ((_, reached, kept),) = precision_recall(pairs, probability, [found], 101)
    assert (reached or 0) >= 0.8
    assert kept == 1.0
    lower = precision_recall(pairs, probability, probability[probability < found].tolist(), 101)
    assert all((precision or 0) < 0.8 for _, precision, _ in lower)
    few = replace(pairs, relevant=np.arange(101) < 3)
    assert lowest_threshold(few, probability, 0.9, 101) is None


def test_pairs_of_equal_probability_go_over_a_threshold_together() -> None:
    """A threshold inside a tie would promise what it cannot keep."""
    probability = np.array([0.9] * 20 + [0.5] * 20)
    relevant = np.array([True] * 20 + [True] * 10 + [False] * 10)
    pairs = Pairs(np.zeros(40, dtype=np.int64), probability, probability, relevant)
    assert 0.9 == lowest_threshold(pairs, probability, 0.8, 40)


def test_further_chunks_of_a_relevant_document_are_hits_that_nothing_is_learned_from() -> None:
    """They take places among the first hits; a map that learned from them would take all but the best for right."""
    relevant = np.array([True, True, True, False, False, False])
    repeated = np.array([False, True, True, False, False, False])
    raw = np.array([3.0, -3.0, -4.0, -1.0, -2.0, -2.5])
    probability = np.array([sigmoid(x) for x in raw])
    pairs = Pairs(np.zeros(6, dtype=np.int64), raw, probability, relevant, repeated)
    ((_, precision, kept),) = precision_recall(pairs, probability, [0.0], 5)
    assert (0.6, 1.0) == (precision, kept)
    learned = pairs.only(pairs.once)
    assert (4, 1) == (len(learned), int(learned.relevant.sum()))
    assert fit(learned, "logit", "platt")[0][0] > 0


def test_precision_is_that_of_what_a_query_returns() -> None:
    """Twenty queries, each with a relevant first hit of 0.3 and nine others of 0.2: of all candidates over 0.2 a tenth
    is relevant, of the first hits all are, and nobody needs a threshold that drops them."""
    probability = np.tile([0.3] + [0.2] * 9, 20)
    pairs = Pairs(np.repeat(np.arange(20), 10), probability, probability, probability > 0.25)
    assert 0.2 == lowest_threshold(pairs, probability, 0.9, 1)
    assert 0.3 == lowest_threshold(pairs, probability, 0.9, 10)
    assert [(0.2, 0.5, 1.0), (0.3, 1.0, 1.0), (0.4, None, 0.0)] == precision_recall(
        pairs, probability, [0.2, 0.3, 0.4], 2
    )


def test_reliability_sets_what_was_said_beside_what_was_true() -> None:
    """Bins without pairs are left out; the error weighs bins by their pairs."""
    probability = np.array([0.05, 0.05, 0.95, 0.95])
    relevant = np.array([False, True, True, True])
    bins = reliability(probability, relevant)
    assert [0.05, 0.95] == pytest.approx([said for said, _, _ in bins])
    assert [(0.5, 2), (1.0, 2)] == [(true, count) for _, true, count in bins]
    assert 0.25 == pytest.approx(calibration_error(probability, relevant))


def _rag() -> Pipeline:
    rag = Pipeline(
        embedder=FakeEmbedder(), store=FakeStore(), reranker=FakeReranker(), chunk_tokens=16, chunk_overlap=0, top_k=50
    )
    rag.ingest([Document(id="long", text="apple pie. " * 30), Document(id="other", text="a car with wheels")])
    return rag


def _dataset(**qrels: int) -> Dataset:
    return Dataset("d", {"q": "apple"}, {"q": qrels})


def test_of_a_relevant_document_only_the_best_chunk_counts() -> None:
    """Its other chunks are not what the judgement meant, and are no mistakes either."""
    rag = _rag()
    chunks = rag.store.count().chunks
    assert chunks > 3
    pairs = judged_pairs(rag, _dataset(long=1), lambda _: None)
    assert [True, False] == pairs.only(pairs.once).relevant.tolist()
    assert pairs.raw[0] == max(pairs.raw)
    assert math.isclose(pairs.probability[0], sigmoid(pairs.raw[0]))
    irrelevant = judged_pairs(rag, _dataset(other=1), lambda _: None)
    assert chunks == len(irrelevant)
    assert 1 == irrelevant.relevant.sum()


def test_a_dataset_of_other_documents_is_refused() -> None:
    """Nothing relevant among the candidates: there is nothing to learn from."""
    with pytest.raises(SettingsError, match="no candidate is relevant"):
        judged_pairs(_rag(), _dataset(unknown=1), lambda _: None)


def test_an_endpoint_whose_model_is_not_named_cannot_be_calibrated(tmp_path: Path) -> None:
    """The map would be that of whatever runs there. It is said before any work."""
    settings = Settings(reranker="http", rerank_url="http://127.0.0.1:9", data_dir=tmp_path)
    with pytest.raises(SettingsError, match=r"http does not say which model it runs.*RAG_RERANKER_MODEL"):
        calibrate_dataset("no such dataset", settings, say=lambda _: None)
    assert [] == list(tmp_path.iterdir())


def test_the_report_shows_both_sides_and_loads_nothing() -> None:
    """Reliability, precision and recall before and after, on one page without network."""
    pairs = synthetic(3.0, 6.0, 1)
    after = cross_fitted(pairs, "logit", "platt")
    made = Calibration(
        "模型 <m>@1", "platt", fit(pairs, "logit", "platt"), "set", 400, 8000, 2000, 0.7, 0.9, "2026-01-01T00:00:00"
    )
    html = calibration_page(Outcome(made, Path("x.json"), pairs, after, 5))
    assert "模型 &lt;m&gt;@1" in html
    assert "RAG_THRESHOLD=0.7" in html
    assert "of the first 5 hits are relevant" in html
    assert 3 == html.count('<svg class="chart"')
    assert 6 == html.count("<polyline")
    assert "http:" not in html
    assert "https:" not in html


def test_a_half_that_does_not_rise_does_not_refuse_the_whole() -> None:
    """With few queries one half of them may fall by chance; its map is then that of all."""
    raw = np.array([0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0, 3.0])
    relevant = np.array([False, False, True, True, True, False, False, False])
    pairs = Pairs(np.array([0, 0, 0, 0, 1, 1, 1, 1]), raw, np.array([sigmoid(x) for x in raw]), relevant)
    ((slope, intercept),) = fit(pairs, "logit", "platt")
    mapped = cross_fitted(pairs, "logit", "platt")
    assert mapped[0] == pytest.approx(sigmoid(intercept))
    assert slope > 0
