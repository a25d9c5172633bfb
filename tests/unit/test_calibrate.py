"""Fitting of calibrations, on scores whose truth is known."""

import math
from pathlib import Path
from random import Random
from typing import get_args

import numpy as np
import pytest

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
    precision_over,
    reliability,
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
    before = [precision_over(pairs.probability, pairs.relevant, 0.5) for pairs in (bold, timid)]
    after = []
    for pairs, scale in ((bold, "logit"), (timid, "probability")):
        mapped = cross_fitted(pairs, "logit" if scale == "logit" else "probability", method)
        after.append(precision_over(mapped, pairs.relevant, 0.5))
        assert calibration_error(mapped, pairs.relevant) < 0.02 < calibration_error(pairs.probability, pairs.relevant)
    assert None not in before + after
    assert abs((before[0] or 0) - (before[1] or 0)) > 0.2
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


def test_the_lowest_threshold_reaches_the_precision() -> None:
    """No lower one does, and it is not found on a handful of lucky pairs."""
    probability = np.linspace(1, 0, 101)
    relevant = np.array([i < 3 or (10 <= i < 60) for i in range(101)])
    found = lowest_threshold(probability, relevant, 0.8)
    assert found is not None
    assert (precision_over(probability, relevant, found) or 0) >= 0.8
    assert all((precision_over(probability, relevant, p) or 0) < 0.8 for p in probability[probability < found])
    assert lowest_threshold(probability, np.arange(101) < 3, 0.9) is None


def test_pairs_of_equal_probability_go_over_a_threshold_together() -> None:
    """A threshold inside a tie would promise what it cannot keep."""
    probability = np.array([0.9] * 20 + [0.5] * 20)
    relevant = np.array([True] * 20 + [True] * 10 + [False] * 10)
    assert 0.9 == lowest_threshold(probability, relevant, 0.8)


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
    assert [True, False] == pairs.relevant.tolist()
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
    html = calibration_page(Outcome(made, Path("x.json"), pairs, after))
    assert "模型 &lt;m&gt;@1" in html
    assert "RAG_THRESHOLD=0.7" in html
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
