"""Passages longer than a reranker reads: scored in overlapping windows of tokens, and the best window counts.

The best window stands for the passage because one relevant place makes it relevant (MaxP: Dai and Callan, "Deeper Text
Understanding for IR with Contextual Neural Language Modeling", SIGIR 2019).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from pipeline.types import Candidate

# Room for a model's special tokens, and for pieces that fall apart where a window cuts them off.
_SPARE = 8
# Share of a window that the next one repeats, so that what lies across a border is whole in one of them.
_OVERLAP = 0.25


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a passage as the reranker reads it."""

    text: str
    """The title, if it leaves room, and the part."""
    span: tuple[int, int] | None
    """Where the part is in the passage's text, in characters; None for a passage that is read whole."""


@dataclass(frozen=True, slots=True)
class Passage:
    """Title and text of a chunk; the title may be empty."""

    title: str
    text: str

    @property
    def whole(self) -> str:
        """As a reranker reads it where there is room for all."""
        return f"{self.title}\n{self.text}" if self.title else self.text


def passages_of(candidates: Iterable[Candidate]) -> list[Passage]:
    """What a reranker is asked about, one a candidate."""
    return [Passage(candidate.chunk.title, candidate.chunk.text) for candidate in candidates]


def shorten_query(query: str, tokenizer: Tokenizer, max_tokens: int, *, apart: bool = False) -> tuple[str, int]:
    """The query, cut to half of what the model reads of a pair, and the tokens that are left for a passage.

    To a model that reads the two ``apart`` each may be as long as it takes.
    """
    room = max(2, max_tokens - _SPARE)
    most = room if apart else room // 2
    encoding = tokenizer.encode(query, add_special_tokens=False)
    if len(encoding) > most:
        query = query[: encoding.offsets[most - 1][1]]
    return query, room if apart else room - min(len(encoding), most)


def windows(passages: Sequence[Passage], tokenizer: Tokenizer, room: int) -> list[list[Window]]:
    """For each passage the windows, of at most ``room`` tokens each, that cover it; one for a passage that fits."""
    # No tokenizer makes more tokens of a text than it has bytes.
    long = [i for i, passage in enumerate(passages) if len(passage.whole.encode("utf-8", "replace")) > room]
    encoded = tokenizer.encode_batch_fast([passages[i].whole for i in long], add_special_tokens=False)
    too_long = {i for i, encoding in zip(long, encoded, strict=True) if len(encoding) > room}
    return [
        _cut(passage, tokenizer, room) if i in too_long else [Window(passage.whole, None)]
        for i, passage in enumerate(passages)
    ]


def _cut(passage: Passage, tokenizer: Tokenizer, room: int) -> list[Window]:
    head = f"{passage.title}\n" if passage.title else ""
    title = len(tokenizer.encode(head, add_special_tokens=False)) if head else 0
    if title > room // 4:  # a title that long is no title; what it says is worth less than the text it displaces
        head, title = "", 0
    size = max(1, room - title)
    offsets = tokenizer.encode(passage.text, add_special_tokens=False).offsets
    step = max(1, size - max(1, int(size * _OVERLAP)))
    starts = list(range(0, max(1, len(offsets) - size), step))
    if len(offsets) > size:
        starts.append(len(offsets) - size)  # the last window is as full as the others
    cut = []
    for start in starts:
        end = min(start + size, len(offsets))
        first = offsets[start][0] if start else 0
        last = offsets[end - 1][1] if end < len(offsets) else len(passage.text)
        cut.append(Window(head + passage.text[first:last], (first, last)))
    return cut
