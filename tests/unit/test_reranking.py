import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from pipeline import deadline
from pipeline.calibration import Calibration
from pipeline.errors import RerankerError
from pipeline.reranking import Scorer, rerank
from pipeline.score_cache import ScoreCache
from pipeline.types import RerankScore
from pipeline.windows import Passage, without_limits
from tests.fakes import FakeReranker, word_tokenizer


class Named(FakeReranker):
    """A reranker that says which model it runs, and how much of a text it reads."""

    def __init__(self, identity: str | None = "model@1", max_tokens: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.identity = identity
        self.max_tokens = max_tokens


def scorer(reranker: FakeReranker, **options: Any) -> Scorer:
    return Scorer(reranker, tokenizer=word_tokenizer(), **options)


def passages(*texts: str) -> list[Passage]:
    return [Passage("", text) for text in texts]


def test_equal_passages_are_scored_once_and_blank_ones_not_at_all() -> None:
    """They have their places; a blank one has the lowest score of all."""
    reranker = Named()
    scores = scorer(reranker).score("apple", passages("an apple", "", "a pear", "an apple", " \n"))
    assert [("apple", ["an apple", "a pear"])] == reranker.calls
    assert scores[0] == scores[3]
    assert scores[1] == scores[4]
    raws = [score.raw for score in scores if score is not None]
    assert min(raws) == raws[1] < raws[2] < raws[0]


def test_known_scores_are_not_computed_again() -> None:
    """Only what is new is asked for; another model knows nothing."""
    cache = ScoreCache()
    reranker = Named()
    first = scorer(reranker, cache=cache).score("apple", passages("an apple", "a pear"))
    again = scorer(reranker, cache=cache).score("apple", passages("a pear", "a plum", "an apple"))
    assert [first[1], first[0]] == [again[0], again[2]]
    assert ["a plum"] == reranker.calls[1][1]
    other = Named("model@2")
    scorer(other, cache=cache).score("apple", passages("an apple"))
    assert ["an apple"] == other.calls[0][1]


@pytest.mark.parametrize("changes", [{"scale": "probability"}, {"variant": "of 64 tokens"}])
def test_scores_of_other_settings_are_not_known(changes: dict[str, str]) -> None:
    """The model is the same, and so is the name of its calibration."""
    cache = ScoreCache()
    one, other = Named(), Named()
    for name, value in changes.items():
        setattr(other, name, value)
    for reranker in (one, other, one, other):
        scorer(reranker, cache=cache).score("apple", passages("an apple"))
    assert (1, 1) == (len(one.calls), len(other.calls))
    assert scorer(one).identity == scorer(other).identity


def test_a_reranker_that_does_not_name_its_model_is_not_cached() -> None:
    """Nobody could tell whether the scores are still its own."""
    cache = ScoreCache()
    for _ in range(2):
        reranker = Named(identity=None)
        scorer(reranker, cache=cache).score("apple", passages("an apple"))
        assert 1 == len(reranker.calls)


def test_the_best_window_of_a_long_passage_counts() -> None:
    """And it is said which one that was."""
    text = "plum " * 60 + "apple fruit here " + "plum " * 60
    reranker = Named(max_tokens=40)
    (score,) = scorer(reranker).score("apple fruit", [Passage("Fruit", text)])
    assert score is not None
    assert score.window is not None
    assert "apple fruit" in text[slice(*score.window)]
    assert max(reranker.score("apple fruit", [text])[0].raw, 0) == score.raw
    assert all(len(text.split()) <= 38 for text in reranker.calls[0][1])


def test_a_long_query_leaves_room_for_the_passage() -> None:
    """It is cut to half of what the model reads."""
    reranker = Named(max_tokens=40)
    scorer(reranker).score("apple " * 100, passages("pear " * 100))
    ((query, texts),) = reranker.calls
    assert len(query.split()) == 16
    assert {16} == {len(text.split()) for text in texts}


def test_a_query_that_is_read_apart_takes_no_room_from_the_passage() -> None:
    """So the windows of a passage are the same for every query."""
    reranker = Named(max_tokens=18)
    reranker.apart = True  # type: ignore[attr-defined]
    text = " ".join("abcdefghij")
    scorer(reranker).score("apple", passages(text))
    scorer(reranker).score("apple " * 7, passages(text))
    scorer(reranker).score("apple " * 20, passages(text + " k"))
    assert [text] == reranker.calls[0][1] == reranker.calls[1][1]
    assert 10 == len(reranker.calls[2][0].split())
    assert 2 == len(reranker.calls[2][1])


def test_a_passage_is_counted_for_the_first_query_alone() -> None:
    """Its tokens are the same for all; by another tokenizer it is counted anew."""
    counted: list[str] = []

    class Watched:
        def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
            counted.extend(texts)
            return word_tokenizer().encode_batch_fast(texts, **options)

        def encode(self, text: str, **options: Any) -> Any:
            return word_tokenizer().encode(text, **options)

    reranker = Named(max_tokens=40)
    reranker.tokenizer = Watched()  # type: ignore[attr-defined]
    asked = scorer(reranker)
    text = "a pear of some kind with a long name"
    for query in ("apple", "pear", "what is a pear"):
        asked.score(query, passages(text))
    assert [text] == counted
    reranker.tokenizer = Watched()  # type: ignore[attr-defined]
    asked.score("plum", passages(text))
    assert [text, text] == counted
    assert {text} == {text for _, texts in reranker.calls for text in texts}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("limit", ["cuts", "pads"])
def test_a_tokenizer_that_cuts_or_pads_counts_whole_texts(
    limit: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a model's tokenizer.json says, or the model itself when it is used. One copy serves all calls."""
    copies: list[Tokenizer] = []

    def copied(one: Tokenizer) -> Tokenizer:
        copies.append(without_limits(one))
        return copies[-1]

    monkeypatch.setattr("pipeline.reranking.without_limits", copied)
    reranker = Named(max_tokens=40)
    tokenizer = reranker.tokenizer = word_tokenizer()  # type: ignore[attr-defined]
    asked = scorer(reranker)
    if late:
        asked.score("apple", passages("pear"))
        reranker.calls.clear()
        copies.clear()
    if limit == "cuts":
        tokenizer.enable_truncation(32)
    else:
        tokenizer.enable_padding(length=128)
    text = "plum " * 60 + "apple fruit here " + "plum " * 60
    (score,) = asked.score("apple fruit", passages(text))
    assert score is not None
    assert score.window is not None
    assert "apple fruit" in text[slice(*score.window)]
    (short,) = asked.score("apple fruit", passages("an apple of 2026 – señor"))
    assert short is not None
    assert short.window is None
    assert "apple fruit" == reranker.calls[0][0]
    assert 1 == len(copies)
    assert tokenizer not in copies
    assert tokenizer.truncation or tokenizer.padding


def test_a_calibration_belongs_to_one_model_and_comes_beside_its_own_scores() -> None:
    """The order and the cache are of what the model gave."""
    halved = Calibration("fake model@1", "platt", ((1.0, -1.0),), "d", 1, 1, 1, None, 0.9, "")
    maps = {"fake model@1": halved}
    plain, mapped, other = (
        rerank("apple", passages("an apple"), [scorer(reranker, calibrations=known)])
        for reranker, known in ((Named(), None), (Named(), maps.get), (Named("model@2"), maps.get))
    )
    assert plain.scores == mapped.scores == other.scores
    assert [None, halved, None] == [one.calibration for one in (plain, mapped, other)]


@pytest.mark.parametrize(
    "broken",
    [
        RerankScore(math.nan, 0.5),
        RerankScore(math.inf, 1.0),
        RerankScore(1.0, math.nan),
        RerankScore(1.0, 1.1),
        RerankScore(1.0, -0.1),
    ],
    ids=str,
)
def test_what_is_no_score_is_not_ranked(broken: RerankScore) -> None:
    """A fallback answers, which an error of the operator's would not allow; nothing is kept of it."""

    class Broken(Named):
        def score(self, query: str, texts: Sequence[str]) -> list[RerankScore]:
            scores = super().score(query, texts)
            return [broken if text == "a pear" else score for text, score in zip(texts, scores, strict=True)]

    cache = ScoreCache()
    asked = passages("an apple", "a pear", "a plum")
    with pytest.raises(RerankerError, match=r"reranker fake gave no .* for 1 of 3 texts") as caught:
        scorer(Broken(), cache=cache).score("apple", asked)
    assert ("fake", False) == (caught.value.provider, caught.value.operator)
    answer = rerank("apple", asked, [scorer(Broken(), cache=cache), None])
    assert ("none", 1) == (answer.name, len(answer.failures))
    working = Named()
    scorer(working, cache=cache).score("apple", asked)
    assert 3 == len(working.calls[0][1])


class Remote(FakeReranker):
    """Keeps deadlines by itself; says until when it may work, and fails."""

    keeps_deadline = True

    def __init__(self) -> None:
        super().__init__(name="remote")
        self.until: list[float | None] = []

    def score(self, query: str, texts: Sequence[str]) -> list[RerankScore]:
        self.until.append(deadline.current())
        raise RerankerError("too late", provider="remote", retryable=True)


@pytest.mark.parametrize(("fallback", "share"), [(True, 0.5), (False, 1.0)])
def test_a_remote_reranker_leaves_time_for_a_fallback(
    fallback: bool, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of what is left, where a reranker stands behind it; ``none`` needs no time."""
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)
    remote = Remote()
    answer = rerank(
        "apple", passages("an apple"), [scorer(remote), scorer(Named()) if fallback else None], until=1008.0
    )
    assert [1000.0 + 8.0 * share] == remote.until
    assert (["remote"], "fake" if fallback else "none") == ([e.provider for e in answer.failures], answer.name)
    assert deadline.current() is None


def test_what_others_left_no_time_for_is_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A local reranker hears until when it is waited for; what it had before stays."""
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)
    heard: list[float | None] = []

    class Crowded(Named):
        def score(self, query: str, texts: Sequence[str]) -> list[RerankScore]:
            heard.append(deadline.current())
            if self.calls:
                raise deadline.DeadlinePassedError
            return super().score(query, texts)

    scores = scorer(Crowded()).score("apple", passages(*(f"an apple {i}" for i in range(9))), until=1008.0)
    assert [True] * 4 + [False] * 5 == [score is not None for score in scores]
    assert [1008.0, 1008.0] == heard
    assert deadline.current() is None


def test_one_slow_call_does_not_keep_a_reranker_out_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is slow once; where its pace leaves no room it is trusted a little more each time."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    class Loading(Named):
        def score(self, query: str, texts: Sequence[str]) -> list[RerankScore]:
            clock[0] += 0.001 if self.calls else 100.0
            return super().score(query, texts)

    tried = scorer(Loading())
    tried.score("apple", passages("an apple"), until=clock[0] + 1)
    reached = 0
    for _ in range(40):
        reached += tried.score("apple", passages("an apple"), until=clock[0] + 1)[0] is not None
    assert reached > 1


class Keeping(Named):
    """Keeps what it has read, as late interaction does: 0.1 s for a text that is new, 0.04 s for the query."""

    def __init__(self, clock: list[float]) -> None:
        super().__init__()
        self.clock = clock
        self.read: set[str] = set()

    def tokens_read(self, texts: Sequence[str]) -> list[int | None]:
        return [len(text) if text in self.read else None for text in texts]

    def score(self, query: str, texts: Sequence[str]) -> list[RerankScore]:
        self.clock[0] += 0.04 + 0.1 * self.tokens_read(texts).count(None)
        self.read |= set(texts)
        return super().score(query, texts)


def test_calls_that_share_the_model_share_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes while another is at work plans with half of what the model does, and so does the next."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    slices: list[int] = []

    class Shared(Named):
        def score(self, query: str, texts: Sequence[str]) -> list[RerankScore]:
            slices.append(len(texts))
            clock[0] += 0.1 * len(texts) * (2 if query == "second" else 1)
            if query == "first":
                tried.score("second", passages(*letters), until=clock[0] + 2.2)
            return super().score(query, texts)

    tried = scorer(Shared())
    letters = [letter * 1000 for letter in "abcdefghijklmnopqrst"]
    tried.score("before", passages(*letters))
    tried.score("first", passages(letters[0]))
    assert [20, 1, 7, 2] == slices[:4]  # what is slow as it is shared is no slow model: else the last were one text
    assert clock[0] <= 2 + 0.1 + 2.2  # so long the second one had


@pytest.mark.parametrize("number", [np.float32(0.25), np.float64(0.25)])
def test_scores_are_plain_numbers(number: Any) -> None:
    """A model's own are NumPy's, which JSON does not take."""

    class Model(FakeReranker):
        def score(self, query: str, texts: Sequence[str]) -> list[RerankScore]:
            return [RerankScore(number, number) for _ in texts]

    (found,) = scorer(Model()).score("apple", passages("an apple"))
    assert found is not None
    assert (float, float) == (type(found.raw), type(found.probability))


def test_all_that_was_read_before_is_scored_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a new process, which has not read anything itself and knows no pace."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    reranker = Keeping(clock)
    reranker.read = set("abcdefghijklmnopqrst")
    found = scorer(reranker).score("apple", passages(*reranker.read), until=0.15)
    assert None not in found
    assert 1 == len(reranker.calls)


def test_one_new_text_among_many_known_says_little_of_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the query and the other texts take would count as reading it."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    reranker = Keeping(clock)
    reranker.read = set("abcdefghij")
    tried = scorer(reranker)
    tried.score("apple", passages(*"abcdefghijk"))
    new = passages(*(letter * 1000 for letter in "klmnopqrst"))
    assert None not in tried.score("pear", new, until=clock[0] + 4)


def test_a_short_text_alone_does_not_hold_the_next_query_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes as long as the query does, which says nothing of a long one; the pace is soon known better."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    tried = scorer(Keeping(clock))
    tried.score("apple", passages("k"))
    new = passages(*(letter * 1000 for letter in "klmnopqrst"))
    assert None not in tried.score("pear", new, until=clock[0] + 8)


def test_what_was_read_before_needs_no_time_and_tells_nothing_of_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reranker that keeps what it has read is quick with that; the rest still takes what it takes."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    tried = scorer(Keeping(clock))
    seen, unseen = passages(*"abcdefghij"), passages(*"klmnopqrst")
    for query in ["apple", "pear", "plum"]:
        tried.score(query, seen)
    start = clock[0]
    found = tried.score("apple", [*seen, *unseen], until=start + 0.5)
    assert None not in found[:10]
    assert 3 <= sum(score is not None for score in found[10:]) < 10
    assert clock[0] <= start + 0.5
