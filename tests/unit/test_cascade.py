"""The cascade: a quick reranker's best third is what the full one reads."""

from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.calibration import Calibration
from pipeline.cascade import Cascade, first_step
from pipeline.core import Pipeline
from pipeline.errors import RerankerError
from pipeline.reranking import Scorer
from pipeline.scoring import final_scores, standardise
from pipeline.types import Candidate, Chunk, Document, Hit, RerankScore
from pipeline.windows import Passage
from tests.fakes import FakeEmbedder, FakeReranker, FakeStore, word_tokenizer

# The more pears, the further up the first stage has it.
TEXTS = {str(i): f"apple number {i}" + " pear" * i + " plum" * (12 - i) for i in range(12)}
QUERY = "apple pear"


def preferring(*best: int, **options: Any) -> FakeReranker:
    """A reranker that likes these documents in this order, and the others the less the higher their number."""
    others = [i for i in range(12) if i not in best]
    places = {TEXTS[str(i)]: place for place, i in enumerate([*best, *others])}
    return FakeReranker({text: 3.0 - place / 2 for text, place in places.items()}, **options)


def pipeline(
    quick: FakeReranker | None, full: FakeReranker | None, *, least: int | None = None, top_k: int = 3, **options: Any
) -> Pipeline:
    """A pipeline over the twelve texts, that asks for three hits."""
    cascade = None if quick is None else Cascade(quick, least)
    rag = Pipeline(embedder=FakeEmbedder(), store=FakeStore(), reranker=full, cascade=cascade, top_k=top_k, **options)
    rag.ingest([Document(id=id_, text=text) for id_, text in TEXTS.items()])
    return rag


def ids(hits: Sequence[Hit]) -> list[int]:
    return [int(hit.document_id) for hit in hits]


def read(reranker: FakeReranker) -> list[list[int]]:
    """The documents that it was given, call by call."""
    places = {text: int(id_) for id_, text in TEXTS.items()}
    return [[places[text] for text in texts] for _, texts in reranker.calls]


def candidates(*scores: float) -> list[Candidate]:
    return [Candidate(Chunk("d", "h", i, len(scores), str(i), "", "s"), score, i + 1) for i, score in enumerate(scores)]


# ---------------------------------------------------------------- first step


def step(found: Sequence[Candidate], quick: FakeReranker) -> list[Candidate]:
    passages = [Passage("", candidate.chunk.text) for candidate in found]
    return first_step(QUERY, found, passages, Scorer(quick, tokenizer=word_tokenizer()), None)


def test_the_first_step_weighs_the_first_stage_and_the_quick_reranker_by_its_own_weight() -> None:
    """In the order of (1 - a) z(first stage) + a z(logit), which is that of its scores, too."""
    found, logits = candidates(9.0, 8.5, 8.0, 1.0), [0.0, -3.0, 2.0, 2.5]
    standing = step(found, FakeReranker({str(i): raw for i, raw in enumerate(logits)}, default_alpha=0.4))
    z_first, _, _ = standardise([candidate.score for candidate in found])
    z_quick, _, _ = standardise(logits)
    combined = [0.6 * first + 0.4 * second for first, second in zip(z_first, z_quick, strict=True)]
    by_combined = sorted(range(4), key=lambda i: -combined[i])
    assert [2, 0, 1, 3] == by_combined
    assert by_combined == sorted(range(4), key=lambda i: standing[i].rank)
    expected, _, _ = standardise(combined)
    assert expected == pytest.approx(standardise([candidate.score for candidate in standing])[0])
    assert [candidate.chunk for candidate in found] == [candidate.chunk for candidate in standing]


def test_what_the_first_step_finds_equal_stays_in_the_order_of_the_first_stage() -> None:
    """A tie changes nothing."""
    standing = step(candidates(5.0, 5.0, 5.0), FakeReranker({"0": 1.0, "1": 1.0, "2": 1.0}, default_alpha=0.4))
    assert [1, 2, 3] == [candidate.rank for candidate in standing]


# ------------------------------------------------------------------- the cut


def test_the_full_reranker_reads_its_share_best_first() -> None:
    """The rest stand below, in the order of the first step, with no rerank score; no warning, nothing degraded."""
    quick, full = preferring(3, 7, 1, 0), preferring(1, 3)
    result = pipeline(quick, full, top_k=12, least=3).query(QUERY)
    assert [list(range(12))] == [sorted(call) for call in read(quick)]
    assert [[3, 7, 1, 0]] == read(full)
    assert [1, 3, 0, 7, 2, 4, 5, 6, 8, 9, 10, 11] == ids(result.hits)
    assert [True] * 4 + [False] * 8 == [hit.rerank is not None for hit in result.hits]
    assert (12, 4, "fake", False, []) == (
        result.candidates,
        result.reranked,
        result.reranker,
        result.degraded,
        result.warnings,
    )
    scores = [hit.score for hit in result.hits]
    assert sorted(scores, reverse=True) == scores


@pytest.mark.parametrize(("top_n", "top_k", "reads"), [(12, 3, 4), (11, 3, 4), (10, 3, 4), (9, 3, 3), (12, 7, 7)])
def test_its_share_is_rounded_up_and_is_at_least_what_is_asked_for(top_n: int, top_k: int, reads: int) -> None:
    """So every hit has a rerank score."""
    full = preferring()
    result = pipeline(preferring(), full).query(QUERY, top_n=top_n, top_k=top_k)
    assert (reads, reads) == (len(read(full)[0]), result.reranked)
    assert all(hit.rerank is not None for hit in result.hits)


def test_few_candidates_are_all_read() -> None:
    """Nothing is cut where there is not more than is asked for; the first step still gives the order of reading."""
    full = preferring()
    result = pipeline(preferring(10, 9), full).query(QUERY, top_n=3, top_k=3)
    assert [[10, 9, 11]] == read(full)
    assert 3 == result.reranked == result.candidates


def test_hits_show_where_the_first_stage_had_them() -> None:
    """Its own rank and score, not those of the first step."""
    plain = pipeline(None, preferring()).query(QUERY, top_k=12)
    result = pipeline(preferring(3, 7), preferring(7)).query(QUERY, top_k=12)
    assert {hit.document_id: hit.first_stage for hit in plain.hits} == {
        hit.document_id: hit.first_stage for hit in result.hits
    }


def test_without_a_reranker_there_is_nothing_to_spare() -> None:
    """``none`` keeps the order of the first stage."""
    quick = preferring(3)
    result = pipeline(quick, None).query(QUERY)
    assert ([], "none") == (quick.calls, result.reranker)
    assert [1, 2, 3] == [hit.first_stage.rank for hit in result.hits]


# ---------------------------------------------------------------- the fusion


def test_with_alpha_one_the_full_reranker_alone_orders_its_share() -> None:
    """The score is then its probability; what it finds equal stays in the order of the first step."""
    full = preferring(0)
    full.logits = dict.fromkeys(TEXTS.values(), -1.0) | {TEXTS["0"]: 1.0}
    result = pipeline(preferring(3, 7, 1, 0), full, top_k=4, alpha=1.0).query(QUERY)
    assert [0, 3, 7, 1] == ids(result.hits)
    assert [hit.rerank.probability for hit in result.hits if hit.rerank] == [hit.score for hit in result.hits]


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_calibrations_of_both_steps_change_no_order(alpha: float) -> None:
    """Nor what is read; what was not read stays below in its score, too."""
    flat = Calibration("", "isotonic", ((-9.0, 0.1), (-2.0, 0.4), (2.9, 0.4), (3.0, 0.9)), "", 1, 1, 1, None, 0.9, "")

    def hits(**calibrations: Calibration) -> list[Hit]:
        quick, full = preferring(3, 7, 1, 0, name="quick", default_alpha=0.6), preferring(1, 3, name="full")
        for reranker in (quick, full):
            reranker.identity = "m@1"  # type: ignore[attr-defined]
        known = {f"{name} m@1": calibration for name, calibration in calibrations.items()}
        return pipeline(quick, full, top_k=12, least=3, alpha=alpha, calibrations=known.get).query(QUERY).hits

    plain, mapped = hits(), hits(quick=flat, full=flat)
    assert ids(plain) == ids(mapped)
    assert plain == hits(quick=flat)
    scores = [hit.score for hit in mapped]
    assert sorted(scores, reverse=True) == scores
    assert min(scores[:4]) >= max(scores[4:])


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7])
def test_the_full_reranker_is_fused_with_the_score_of_the_first_step(alpha: float) -> None:
    """Where without a cascade it is that of the first stage."""
    quick, full = preferring(3, 7, 1, 0, default_alpha=0.9), preferring(0, 1, 7, 3)
    hits = pipeline(quick, full, alpha=alpha, top_k=4).query(QUERY).hits
    plain = pipeline(None, preferring()).query(QUERY, top_k=12).hits
    found = [Candidate(hit.chunk, hit.first_stage.score, hit.first_stage.rank) for hit in plain]
    found.sort(key=lambda candidate: candidate.rank)
    standing = sorted(step(found, quick), key=lambda candidate: candidate.rank)[:4]
    again = preferring(0, 1, 7, 3).score(QUERY, [candidate.chunk.text for candidate in standing])
    expected = final_scores(standing, again, alpha=alpha)
    assert sorted(expected, reverse=True) == pytest.approx([hit.score for hit in hits])
    if alpha == 0.0:
        assert [int(candidate.chunk.document_id) for candidate in standing] == ids(hits)


def test_rank_fusion_takes_the_ranks_of_the_first_step() -> None:
    """First of the first step and second of the second one, and the other way round."""
    result = pipeline(preferring(3, 7, 1, 0), preferring(7, 3), fusion="rrf", alpha=0.5).query(QUERY)
    both = 61 * 0.5 * (1 / 61 + 1 / 62)
    assert [both, both] == pytest.approx([hit.score for hit in result.hits[:2]])
    assert {3, 7} == set(ids(result.hits[:2]))


def test_what_the_full_reranker_did_not_read_is_under_any_threshold() -> None:
    """A threshold promises that something is known."""
    result = pipeline(preferring(3, 7, 1, 0), preferring()).query(QUERY, top_k=4, threshold=0.0)
    assert {0, 1, 3, 7} == set(ids(result.hits))
    assert 4 == result.reranked
    cut = pipeline(preferring(3, 7, 1, 0), preferring(), least=1).query(QUERY, top_k=12, threshold=0.0)
    assert 4 == len(cut.hits)


# ------------------------------------------------------------------ deadline


class Slow(FakeReranker):
    """Takes so many seconds a text on a clock of its own."""

    def __init__(self, clock: list[float], seconds: float, like: FakeReranker) -> None:
        super().__init__(like.logits, name=like.name)
        self.clock = clock
        self.seconds = seconds

    def score(self, query: str, texts: Sequence[str]) -> list[RerankScore]:
        self.clock[0] += self.seconds * len(texts)
        return super().score(query, texts)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    ticks = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: ticks[0])
    return ticks


def test_time_is_spent_on_what_the_first_step_finds_best(clock: list[float]) -> None:
    """What the deadline leaves is the most promising; the warning counts what was to be read."""
    full = Slow(clock, 1.0, preferring())
    result = pipeline(preferring(3, 7, 1, 0, 5, 6, 8, 9), full, top_k=8, deadline_ms=6500).query(QUERY)
    reached = [document for call in read(full) for document in call]
    assert 4 <= result.reranked < 8
    assert [3, 7, 1, 0, 5, 6, 8, 9][: result.reranked] == reached
    assert set(reached) == set(ids(result.hits[: result.reranked]))
    assert [3, 7, 1, 0, 5, 6, 8, 9][result.reranked :] == ids(result.hits[result.reranked :])
    assert [f"the deadline of 6500 ms left time to rerank {result.reranked} of 8 candidates"] == result.warnings


def test_a_deadline_that_was_kept_is_not_spoken_of(clock: list[float]) -> None:
    """What the cascade left out was not left out for want of time."""
    result = pipeline(preferring(), Slow(clock, 0.001, preferring()), deadline_ms=60_000).query(QUERY)
    assert (4, []) == (result.reranked, result.warnings)


def test_the_first_step_takes_half_of_the_time_at_most(clock: list[float]) -> None:
    """It is nothing without the second; what it did not reach stands below, as the first stage has it."""
    quick, full = Slow(clock, 1.0, preferring(11, 10, 9, 8)), Slow(clock, 0.1, preferring())
    rag = pipeline(quick, full)
    result = rag.query(QUERY, deadline_ms=14_000)
    seen = [document for call in read(quick) for document in call]
    assert 4 <= len(seen) <= 7
    assert 4 == result.reranked
    assert set(read(full)[0]) <= set(seen)


def test_where_no_time_was_left_the_order_is_that_of_the_first_step(clock: list[float]) -> None:
    """The best that is known; it is degraded, as without a cascade."""
    full = Slow(clock, 1.0, preferring())
    rag = pipeline(preferring(3, 7, 1, 0), full)
    rag.query(QUERY, deadline_ms=60_000)  # measures its pace
    result = rag.query(QUERY, deadline_ms=1)
    assert (True, "none", 0, [3, 7, 1]) == (result.degraded, result.reranker, result.reranked, ids(result.hits))


# ------------------------------------------------------------------ failures


class Failing(FakeReranker):
    """A reranker that never answers."""

    def __init__(self, name: str, operator: bool = False) -> None:
        super().__init__(name=name)
        self.operator = operator

    def score(self, query: str, texts: Sequence[str]) -> list[RerankScore]:
        raise RerankerError(f"{self.name} is down", provider=self.name, operator=self.operator)


def test_a_first_step_that_fails_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    """The full reranker answered, so nothing is degraded: it read all candidates."""
    full = preferring(5, 6)
    result = pipeline(Failing("quick"), full).query(QUERY)
    expected = pipeline(None, preferring(5, 6)).query(QUERY)
    assert (12, False) == (result.reranked, result.degraded)
    assert expected.hits == result.hits
    assert ["the first step quick failed, so there was none: quick is down"] == result.warnings
    assert ["quick is down"] == [str(record.args[-1]) for record in caplog.records if isinstance(record.args, tuple)]


def test_a_first_step_that_somebody_must_mend_is_an_error() -> None:
    """It would be hidden for good."""
    with pytest.raises(RerankerError, match="quick is down"):
        pipeline(Failing("quick", operator=True), preferring()).query(QUERY)


def test_a_fallback_reads_all_candidates_as_the_first_stage_had_them() -> None:
    """As it does without a cascade; it may well be the quick one itself."""
    options: dict[str, Any] = {"fallbacks": [preferring(5, default_alpha=0.4)], "alpha": 0.0}
    result = pipeline(preferring(3, 7), Failing("full"), **options).query(QUERY)
    expected = pipeline(None, Failing("full"), **options).query(QUERY)
    assert (12, True) == (result.reranked, result.degraded)
    assert expected.hits == result.hits
    assert expected.warnings == result.warnings


# -------------------------------------------------------------- its resources


class Held(FakeReranker):
    """Is loaded and closed."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[str] = []

    def load(self) -> None:
        self.done.append("loaded")

    def close(self) -> None:
        self.done.append("closed")


def test_its_model_is_loaded_beside_the_first_stage_and_closed_with_the_pipeline() -> None:
    """As the full reranker's."""
    quick = Held()
    with pipeline(quick, preferring()) as rag:
        rag.query(QUERY)
    assert ["loaded", "closed"] == quick.done
