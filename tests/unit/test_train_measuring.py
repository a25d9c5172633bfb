from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from pipeline.errors import SettingsError
from pipeline.evaluation.statistics import difference
from pipeline.reranking import Scorer
from pipeline.score_cache import ScoreCache
from pipeline.settings import Settings
from pipeline.training import finishing, measuring
from pipeline.training.finishing import Prepared
from pipeline.training.measuring import Case
from pipeline.training.starting import Base
from pipeline.types import Candidate, Chunk, RerankScore, StageFusion
from tests.fakes import FakeReranker, word_tokenizer

pytestmark = pytest.mark.usefixtures("plain_settings")


def case(number: int, relevant: str = "c", found: str = "abcde") -> Case:
    """Five candidates of which the first stage puts the relevant one third."""
    chunks = [Chunk(id_, "hash", 0, 1, id_, "", id_) for id_ in found]
    candidates = tuple(Candidate(chunk, 1.0 - rank / 10, rank) for rank, chunk in enumerate(chunks, 1))
    return Case("set", f"set/{number}", f"query {number}", candidates, {relevant: 1})


def logits(*values: float) -> list[RerankScore]:
    return [RerankScore(value, 1 / (1 + math.exp(-value))) for value in values]


CASES = [case(1), case(2)]
MANY = [case(number) for number in range(10)]
THIRD = 1 / math.log2(4)


def test_without_scores_it_is_the_first_stage_s_order() -> None:
    """A relevant document at the third place has 1 / log2(4)."""
    assert [THIRD, THIRD] == pytest.approx(measuring.ndcg(CASES, None))


def test_a_reranker_that_is_right_has_one() -> None:
    """Alone, and with enough weight."""
    scores = [logits(0, 0, 5, 0, 0)] * 2
    assert [1.0, 1.0] == measuring.ndcg(CASES, scores)
    assert [1.0, 1.0] == measuring.ndcg(CASES, scores, 0.8)


def test_behind_a_first_step_only_what_is_read_has_a_say() -> None:
    """Where the first step puts the relevant one last, no score lifts it; where it is among the best two, one does."""
    scores = [logits(0, 0, 5, 0, 0)] * 2
    for quick, expected in (([4.0, 3.0, -9.0, 2.0, 1.0], 1 / math.log2(6)), ([-1.0, -2.0, 9.0, -3.0, -4.0], 1.0)):
        scorer = Scorer(FakeReranker(dict(zip("abcde", quick, strict=True))), tokenizer=word_tokenizer())
        of = measuring.after_first_step(CASES, scorer)
        kept = measuring.in_second_step(of, scores, 1)
        assert [2, 2] == [sum(score is not None for score in its) for its in kept]
        assert [expected] * 2 == pytest.approx(measuring.ndcg(of, kept))
    kept = measuring.in_second_step(of, scores, 4)
    assert [4, 4] == [sum(score is not None for score in its) for its in kept]


@pytest.mark.parametrize(
    ("right", "usual", "expected"),
    [
        ([0, 0, 5, 0, 0], 0.2, 0.4),
        ([0, 0, 5, 0, 0], 0.6, 0.6),
        ([0, 0, 5, 0, 0], 0.62, 0.62),
        ([5, 4, 0, 0, 0], 0.5, 0.5),
        ([0, 0, -5, 0, 0], 0.5, 0.2),
    ],
)
def test_the_weight_is_the_nearest_of_the_best(right: Sequence[float], usual: float, expected: float) -> None:
    """One that is right gets as much as it needs: (1 - a) * 1.41 - a / 2 < 2 * a, so a > 0.36.

    One that only does harm gets what does none, and where all weights are equal it is the one that was there before.
    """
    scores = [logits(*right)] * len(MANY)
    chosen = measuring.best_alpha(MANY, scores, usual)
    assert expected == chosen
    best = max(sum(measuring.ndcg(MANY, scores, step / 20)) for step in range(1, 21))
    assert best == pytest.approx(sum(measuring.ndcg(MANY, scores, chosen)))


def test_a_handful_of_queries_changes_no_weight() -> None:
    """Two that another weight puts right may be chance."""
    assert 0.2 == measuring.best_alpha(CASES, [logits(0, 0, 5, 0, 0)] * 2, 0.2)


def test_the_model_before_stands_with_its_own_weight() -> None:
    """Who uses it has it so; and the new one has that weight unless another is better."""
    old, new = (FakeReranker(dict.fromkeys("abde", 0.0) | {"c": 5.0}, default_alpha=0.2) for _ in range(2))
    ready = Prepared([], {}, MANY, [case(20)], 0, word_tokenizer())
    settings = Settings(cascade="off")
    outcome = finishing._measured(Base("m", "m", old, None), new, ready, ScoreCache(), settings, lambda line: None)
    assert {"before": 0.2, "after": 0.4} == outcome["alpha"]
    assert outcome["ndcg@10"]["before"] < outcome["ndcg@10"]["after"] == 1.0


@pytest.mark.parametrize(("fusion", "alpha", "place"), [("linear", 0.4, 3), ("rrf", 0.7, 2)])
def test_it_is_measured_with_the_fusion_of_queries(fusion: StageFusion, alpha: float, place: int) -> None:
    """The weight is chosen with it, and the figure is what queries will have: with that weight alone it would be 1."""
    new = FakeReranker({"a": 0.0, "b": 0.0, "c": 5.0, "d": 0.0, "e": 0.0}, default_alpha=0.1)
    ready = Prepared([], {}, MANY, [case(30, found="abdec")], 0, word_tokenizer())
    settings = Settings(fusion=fusion, cascade="off")
    outcome = finishing._measured(
        Base("none", "none", None, None), new, ready, ScoreCache(), settings, lambda line: None
    )
    assert alpha == outcome["alpha"]["after"]
    assert outcome["ndcg@10"]["after"] == pytest.approx(1 / math.log2(place + 1), abs=1e-5)
    assert 1.0 == outcome["ndcg@10"]["after_alone"]


@pytest.mark.parametrize(
    ("new", "expected"),
    [([0.9] * 30, "better"), ([0.1] * 30, "worse"), ([0.5] * 30, "no difference"), ([0.6, 0.4] * 15, "no difference")],
)
def test_the_verdict_asks_whether_it_may_be_chance(new: list[float], expected: str) -> None:
    """A higher mean alone is not better."""
    assert expected == measuring.verdict(difference([0.5] * 30, new))


def test_nothing_relevant_among_the_candidates_is_an_error() -> None:
    """Then every reranker has 0, and nothing was measured."""
    measuring.check([case(1), case(2, "elsewhere")])
    with pytest.raises(SettingsError, match="do queries and corpus belong"):
        measuring.check([case(2, "elsewhere")])


def test_a_query_that_is_asked_again_and_again_counts_once() -> None:
    """Clicks repeat queries; the test takes its values to be independent."""
    of = [Case("clicks", str(i), query, (), {}) for i, query in enumerate(["a b", "A b?", "c", "a  b"])]
    assert measuring.distinct(of) == 2
    assert measuring.by_query(of, [0.0, 0.5, 1.0, 1.0]) == [0.5, 1.0]
