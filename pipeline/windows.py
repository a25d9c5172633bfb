"""Passages longer than a reranker reads: scored in overlapping windows of tokens, and the best window counts.

The best window stands for the passage because one relevant place makes it relevant (MaxP: Dai and Callan, "Deeper Text
Understanding for IR with Contextual Neural Language Modeling", SIGIR 2019).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from pipeline.byte_cache import digest
from pipeline.types import Candidate

# Room for a model's special tokens, and for pieces that fall apart where a window cuts them off.
_SPARE = 8
# Share of a window that the next one repeats, so that what lies across a border is whole in one of them.
_OVERLAP = 0.25
# Texts whose length is remembered, at some 200 bytes each.
_TEXTS = 50_000


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


def is_limited(tokenizer: Tokenizer) -> bool:
    """Whether it cuts or pads texts, as a model's ``tokenizer.json`` often says."""
    return getattr(tokenizer, "truncation", None) is not None or getattr(tokenizer, "padding", None) is not None


def without_limits(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, or a copy that neither cuts nor pads: its model goes on using this one."""
    if not is_limited(tokenizer):
        return tokenizer
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


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


class TokenCounts:
    """How many tokens a tokenizer makes of texts, remembered for those counted last. Safe to share between threads.

    Counting takes longer than reranking passages whose token vectors are known, and the same ones come again.
    """

    def __init__(self, tokenizer: Tokenizer, limit: int = _TEXTS) -> None:
        self.tokenizer = tokenizer
        self._limit = limit
        self._counted: dict[bytes, int] = {}
        self._lock = threading.Lock()

    def of(self, texts: Sequence[str]) -> list[int]:
        """One number a text, without special tokens."""
        keys = [digest(text) for text in texts]
        with self._lock:
            counts = {key: self._counted[key] for key in keys if key in self._counted}
        fresh = {key: text for key, text in zip(keys, texts, strict=True) if key not in counts}
        if fresh:
            encoded = self.tokenizer.encode_batch_fast(list(fresh.values()), add_special_tokens=False)
            new = {key: len(encoding) for key, encoding in zip(fresh, encoded, strict=True)}
            counts |= new
            with self._lock:
                self._counted |= new
                while len(self._counted) > self._limit:
                    del self._counted[next(iter(self._counted))]
        return [counts[key] for key in keys]


def windows(
    passages: Sequence[Passage],
    counts: TokenCounts,
    room: int,
    tokens_read: Callable[[Sequence[str]], Sequence[int | None]] = lambda texts: [None] * len(texts),
) -> list[list[Window]]:
    """For each passage the windows, of at most ``room`` tokens each, that cover it; one for a passage that fits.

    ``tokens_read`` knows of some texts how many tokens were made of them, or of the beginning that a model reads.
    """
    long = [i for i, passage in enumerate(passages) if not _surely_fits(passage.whole, room)]
    read = tokens_read([passages[i].whole for i in long])
    # Of so few nothing was cut off: they are all that there are.
    long = [i for i, tokens in zip(long, read, strict=True) if tokens is None or tokens > room]
    found = counts.of([passages[i].whole for i in long])
    too_long = {i for i, count in zip(long, found, strict=True) if count > room}
    return [
        _cut(passage, counts.tokenizer, room) if i in too_long else [Window(passage.whole, None)]
        for i, passage in enumerate(passages)
    ]


def _surely_fits(text: str, room: int) -> bool:
    """Whether that can be known without a tokenizer.

    None makes more tokens of ASCII than there are characters, and one that it may put before the first word. Other
    letters may become several when they are normalized: a single Arabic one is a whole sentence (U+FDFA).
    """
    return len(text) < room and text.isascii()


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
