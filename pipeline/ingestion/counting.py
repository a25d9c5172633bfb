"""Tokens of the pieces of a text, counted in one pass."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from tokenizers import Tokenizer

from pipeline.ingestion.boundaries import Atom

# Characters that count as one token at least, so that a chunk's length is bounded where a tokenizer makes one token of
# a word of any length.
CHARACTERS_PER_TOKEN = 32
# What is tokenized in one go, and how many of these at once: the tokenizer works on them in parallel, and an encoding
# takes some hundred bytes a token.
_SEGMENT_CHARACTERS = 4_000
_SEGMENTS_AT_ONCE = 64


def weigh(tokenizer: Tokenizer, text: str, pieces: Sequence[Atom]) -> list[int]:
    """Tokens of each piece where it stands in the text: alone it may have one or two more."""
    ends = [piece.start for piece in pieces[1:]] + [len(text)]
    segments = [0]
    for piece, end in zip(pieces, ends, strict=True):
        if end - segments[-1] > _SEGMENT_CHARACTERS and piece.start > segments[-1]:
            segments.append(piece.start)
    bounds = list(pairwise([*segments, len(text)]))
    weights: list[int] = []
    for i in range(0, len(bounds), _SEGMENTS_AT_ONCE):
        some = bounds[i : i + _SEGMENTS_AT_ONCE]
        encodings = tokenizer.encode_batch([text[low:high] for low, high in some], add_special_tokens=False)
        for (low, high), encoding in zip(some, encodings, strict=True):
            starts = [low + offset for offset, _ in encoding.offsets]
            counted = 0
            while len(weights) < len(pieces) and ends[len(weights)] <= high:
                piece, end = pieces[len(weights)], ends[len(weights)]
                upto = bisect_left(starts, end) if end < high else len(starts)
                weights.append(max(upto - counted, by_length(end - piece.start)))
                counted = upto
    return weights


def by_length(characters: int) -> int:
    """Tokens that so many characters count as at least."""
    return -(-characters // CHARACTERS_PER_TOKEN)
