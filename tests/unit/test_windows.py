from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from pipeline.windows import Passage, TokenCounts, shorten_query, windows
from tests.fakes import word_tokenizer

TOKENIZER = word_tokenizer()
COUNTS = TokenCounts(TOKENIZER)
LONG = " ".join(f"word{i}" for i in range(100))


def test_a_passage_that_fits_is_read_whole() -> None:
    """Title and text, and no span."""
    ((window,),) = windows([Passage("Title", "some text")], COUNTS, 20)
    assert ("Title\nsome text", None) == (window.text, window.span)


def test_windows_overlap_and_cover_everything() -> None:
    """Each is as long as the model reads, and a quarter of it comes again in the next."""
    (cut,) = windows([Passage("", LONG)], COUNTS, 40)
    spans = [window.span for window in cut if window.span is not None]
    assert (0, len(LONG)) == (spans[0][0], spans[-1][1])
    assert [40] * 3 == [len(window.text.split()) for window in cut]
    for (_, end), (start, _) in pairwise(spans):
        assert len(LONG[start:end].split()) >= 10
    assert [LONG[start:end] for start, end in spans] == [window.text for window in cut]


def test_each_window_has_the_title() -> None:
    """It says what the part is about; its tokens count."""
    (cut,) = windows([Passage("On words", LONG)], COUNTS, 40)
    assert len(cut) > 1
    assert all(window.text.startswith("On words\nword") and len(window.text.split()) <= 40 for window in cut)


def test_a_title_that_would_take_a_quarter_of_the_room_is_left_out() -> None:
    """Else there were little room for the text."""
    (cut,) = windows([Passage(LONG, LONG)], COUNTS, 40)
    assert all(len(window.text.split()) == 40 for window in cut)


class Watched:
    """The tokenizer of words, which notes what it is asked to count."""

    def __init__(self) -> None:
        self.counted: list[str] = []

    def encode_batch_fast(self, texts: Sequence[str], **options: Any) -> Any:
        self.counted += texts
        return TOKENIZER.encode_batch_fast(texts, **options)

    def encode(self, text: str, **options: Any) -> Any:
        return TOKENIZER.encode(text, **options)


def test_a_text_is_counted_once() -> None:
    """Also where it stands twice."""
    watched = Watched()
    counts = TokenCounts(watched)  # type: ignore[arg-type]
    assert [2, 1, 2] == counts.of(["a pear", "plum", "a pear"])
    assert [1, 3, 2] == counts.of(["plum", "and an apple", "a pear"])
    assert ["a pear", "plum", "and an apple"] == watched.counted


def test_what_a_model_has_read_whole_is_not_counted() -> None:
    """As many tokens as a model reads may be the beginning of a text that is longer: that one is counted."""
    watched = Watched()
    short, long = "word " * 9, "word " * 30
    read = {short: 9, long: 12}
    asked = [Passage("", text) for text in (short, long, "new " * 9)]
    counts = TokenCounts(watched)  # type: ignore[arg-type]
    found = windows(asked, counts, 10, lambda texts: [read.get(text) for text in texts])
    assert [long, "new " * 9] == watched.counted
    assert [1, 1] == [len(found[0]), len(found[2])]
    assert len(found[1]) > 2


def test_the_texts_counted_first_are_forgotten_first() -> None:
    """So that memory is bounded; all numbers stay right, and so they are of more texts than are remembered."""
    watched = Watched()
    counts = TokenCounts(watched, limit=2)  # type: ignore[arg-type]
    assert [1, 2, 3] == counts.of(["a", "a b", "a b c"])
    assert [3, 2] == counts.of(["a b c", "a b"])
    assert ["a", "a b", "a b c"] == watched.counted
    assert [1] == counts.of(["a"])
    assert "a" == watched.counted[-1]


def test_a_text_that_grows_when_it_is_normalized_is_cut_by_what_it_becomes() -> None:
    """It has fewer bytes than there is room for tokens, but each of its letters stands for eighteen."""
    tokenizer = word_tokenizer()
    tokenizer.normalizer = normalizers.NFKC()
    (cut,) = windows([Passage("", "\ufdfa" * 6)], TokenCounts(tokenizer), 20)
    assert len(cut) > 1


@given(st.text(max_size=300), st.integers(3, 30))
def test_any_text_is_covered(text: str, room: int) -> None:
    """Whatever the script: from the first character to the last, without a gap."""
    (cut,) = windows([Passage("", text)], COUNTS, room)
    if cut[0].span is None:
        assert text == cut[0].text
        return
    spans = [window.span for window in cut if window.span is not None]
    assert (0, len(text)) == (spans[0][0], spans[-1][1])
    assert all(start <= end for (_, end), (start, _) in pairwise(spans))


@pytest.mark.parametrize(("length", "kept"), [(10, 10), (46, 46), (47, 46), (1000, 46)])
def test_a_long_query_is_cut_to_half_of_the_room(length: int, kept: int) -> None:
    """The other half is the passage's."""
    query = " ".join(["q"] * length)
    short, room = shorten_query(query, TOKENIZER, 100)
    assert (kept, 92 - kept) == (len(short.split()), room)
