import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.scoring import final_scores, first_stage_scores, logit, order, sigmoid, standardise
from pipeline.types import Candidate, Chunk, RerankScore, StageFusion


def candidates(*scores: float) -> list[Candidate]:
    return [
        Candidate(Chunk(f"d{i}", "h", 0, 1, f"text {i}", "", f"d{i}"), score, i + 1) for i, score in enumerate(scores)
    ]


def from_logits(*logits: float) -> list[RerankScore]:
    return [RerankScore(x, sigmoid(x)) for x in logits]


def test_sigmoid_does_not_overflow_at_either_end() -> None:
    """Far out the sigmoid is 0 or 1, never an error."""
    assert [0.0, 0.5, 1.0] == [sigmoid(-1e6), sigmoid(0.0), sigmoid(1e6)]


@given(st.floats(-15, 15))
def test_logit_undoes_sigmoid(x: float) -> None:
    """Both directions agree where float64 can tell probabilities apart."""
    assert x == pytest.approx(logit(sigmoid(x)), abs=1e-6)


def test_logit_of_the_ends_is_finite() -> None:
    """Probabilities of exactly 0 and 1 stay usable."""
    assert (-36.0, 36.0) == (logit(0.0), logit(1.0))


def test_equal_values_standardise_to_zero() -> None:
    """Rounding noise in equal values must not become an order."""
    z, mean, deviation = standardise([0.1 + 0.2, 0.3, 0.3])
    assert ([0.0, 0.0, 0.0], 0.0) == (z, deviation)
    assert 0.3 == pytest.approx(mean)


def test_alpha_one_gives_the_probability() -> None:
    """With all the weight on the reranker the score is its probability."""
    rerank = from_logits(-3.0, 2.0, 0.5)
    scores = final_scores(candidates(3, 2, 1), rerank, alpha=1.0)
    assert [score.probability for score in rerank] == scores


def test_alpha_zero_gives_the_order_of_the_first_stage() -> None:
    """With no weight on the reranker the first stage decides."""
    found = candidates(0.9, 0.5, 0.1)
    rerank = from_logits(-5.0, 0.0, 5.0)
    scores = final_scores(found, rerank, alpha=0.0)
    assert [0, 1, 2] == order(found, scores, rerank)


def test_fusion_weighs_standardised_scores() -> None:
    """The order is that of (1 - a) z(first) + a z(rerank), whatever the scales of the two."""
    found = candidates(1000.0, 999.0, 900.0, 850.0)
    rerank = from_logits(0.01, 0.03, 0.02, -0.01)
    z_first, _, _ = standardise([c.score for c in found])
    z_rerank, _, _ = standardise([r.raw for r in rerank])
    fused = [0.75 * f + 0.25 * r for f, r in zip(z_first, z_rerank, strict=True)]
    wanted = sorted(range(4), key=lambda i: -fused[i])
    assert wanted == order(found, final_scores(found, rerank, alpha=0.25), rerank)


def test_a_probability_is_fused_by_its_logit() -> None:
    """An API's probability and a cross-encoder's logit of the same value fuse alike."""
    found = candidates(3, 2, 1)
    logits = [-2.0, 4.0, 1.0]
    by_logit = final_scores(found, from_logits(*logits), alpha=0.4)
    probabilities = [RerankScore(sigmoid(x), sigmoid(x)) for x in logits]
    assert by_logit == pytest.approx(final_scores(found, probabilities, alpha=0.4))


def test_ties_are_broken_by_raw_score_then_by_first_stage_rank() -> None:
    """Saturated probabilities tie in float64; their logits still tell them apart."""
    found = candidates(3, 2, 1)
    assert [2, 0, 1] == order(found, [1.0, 1.0, 1.0], from_logits(50.0, 50.0, 60.0))


def test_one_candidate_keeps_its_probability() -> None:
    """With nothing to compare with, the score is the rerank probability at any weight."""
    assert [pytest.approx(sigmoid(1.5))] == final_scores(candidates(7.0), from_logits(1.5), alpha=0.25)


def test_no_candidates_give_no_scores() -> None:
    """An empty recall is not an error."""
    assert ([], []) == (final_scores([], [], alpha=0.5), first_stage_scores([]))


@given(
    st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-40, 40)), min_size=1, max_size=30),
    st.floats(0, 1),
)
def test_scores_stay_in_the_unit_interval(pairs: list[tuple[float, float]], alpha: float) -> None:
    """Whatever the stages say, a final score is in [0, 1]."""
    found = candidates(*(first for first, _ in pairs))
    scores = final_scores(found, from_logits(*(second for _, second in pairs)), alpha=alpha)
    assert all(0.0 <= score <= 1.0 and math.isfinite(score) for score in scores)


def test_rank_fusion_weighs_reciprocal_ranks() -> None:
    """(k + 1) ((1 - a) / (k + r1) + a / (k + r2)) with k = 60, whatever the scores are."""
    found = candidates(9.0, 5.0, 4.0)
    scores = final_scores(found, from_logits(-1.0, 8.0, 3.0), alpha=0.25, fusion="rrf")
    expected = [61 * (0.75 / (60 + first) + 0.25 / (60 + second)) for first, second in ((1, 3), (2, 1), (3, 2))]
    assert expected == pytest.approx(scores)


@pytest.mark.parametrize("fusion", ["linear", "rrf"])
def test_candidates_without_a_rerank_score_stand_below_in_first_stage_order(fusion: StageFusion) -> None:
    """What time did not reach cannot overtake what was judged, however badly."""
    found = candidates(9.0, 8.0, 7.0, 6.0)
    rerank = [*from_logits(-9.0, -8.0), None, None]
    scores = final_scores(found, rerank, alpha=1.0, fusion=fusion)
    assert [1, 0, 2, 3] == order(found, scores, rerank)
    assert sorted(scores[:2]) == scores[:2]
    assert min(scores[:2]) > scores[2] > scores[3] > 0
