"""Where a text may be cut, and how good each place is.

A text becomes a row of atoms: pieces that are kept whole unless one alone is too long. Each atom knows how strong the
boundary before it is. Boundaries lie behind white space: an atom begins with its first word, or with a line's indent.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from pipeline.text import HAN

# Strength of a boundary, the strongest last. That before a paragraph is stronger the less it is indented: up to BLOCK.
FORBIDDEN, BROKEN, PUNCTUATION, WORD, CLAUSE, SOFT_LINE, SENTENCE, LINE, PARAGRAPH = range(-3, 6)
INTRODUCED, BLOCK = PARAGRAPH + 1, PARAGRAPH + 17

_CLOSERS = "\"'”’」』）】》〉］｝〕〗)\\]}"
_BOUNDARY = re.compile(
    r"\n(?P<paragraph>(?:[^\S\n]*+\n)*+)"
    r"|(?P<latin>(?<![.!?])[.!?]++[\"'”’»)\]]*+[^\S\n]++(?![a-z]))"
    # Chinese may have marks of half width, and no space behind them; a full stop then stands between ideographs.
    rf"|(?P<chinese>(?:[。！？；…｡][。！？；…｡!?]*+|(?<=[{HAN}”）)])[.!?;]++(?=[{HAN}{_CLOSERS}]))[{_CLOSERS}]*+[^\S\n]*+)"
    rf"|[,;:.!?][^\S\n]++|[，、：][{_CLOSERS}]*+[^\S\n]*+|[,:](?=[{HAN}“（(])"
)
# A full stop after these seldom ends a sentence: initials, list numbers, the commonest abbreviations.
_ABBREVIATION = re.compile(r"(?:^|[\s(])(?:[A-Z]|\d{1,3}|Mr|Mrs|Ms|Dr|Prof|Fig|Eq|No|St|Jr|vs|al|e\.g|i\.e)\.$")
# A newline after or before these separates lines that stand for themselves (code, lists, tables, short statements);
# any other newline may be a wrapped line of prose.
_LINE_ENDS = frozenset('.!?…。！？；;：:{}|>)]"”』」')
_LINE_STARTS = frozenset(' \t#|>*+-–•0123456789<@}])({["')
# Ideographs, kana and their marks: writing without spaces, where a token is the closest to a word.
_IDEOGRAPHIC = re.compile(r"[⺀-⻿、-ヿㄅ-ㄯ㐀-䶿一-鿿豈-﫿＀-￯\U00020000-\U0003ffff]")
_INDENT = re.compile(r"[ \t]*")
# What a line ends with that introduces the next; and a paragraph of a few words, such as "See also" or "第一章".
_INTRODUCING = frozenset(":：")
_LABEL_LENGTH = 40
_LABEL = re.compile(rf"[^\W\d_][\w -]{{0,{_LABEL_LENGTH - 10}}}")
_NOT_AT_START = frozenset("，。！？；：、…）」』】》〉］｝〕〗”’,.!?;:)]}%")
_NOT_AT_END = frozenset("（「『【《〈［｛〔〖“‘([{")


class Atom(NamedTuple):
    """A piece of text that begins at ``start`` and ends where the next begins."""

    start: int
    level: int
    """Strength of the boundary before it."""


def atoms(text: str, *, longest: int) -> list[Atom]:
    """Cuts a text at every boundary down to clauses; a piece of more than ``longest`` characters is cut further."""
    found = [Atom(0, PARAGRAPH)]
    for match in _BOUNDARY.finditer(text):
        level = _level(text, match)
        if match.start() == found[-1].start and len(found) > 1:
            level = max(level, found.pop().level)
        if match.end() < len(text):
            found.append(Atom(match.end(), level))
    ends = [atom.start for atom in found[1:]] + [len(text)]
    if all(end - atom.start <= longest for atom, end in zip(found, ends, strict=True)):
        return found
    return [piece for atom, end in zip(found, ends, strict=True) for piece in _pre_cut(text, atom, end, longest)]


def _level(text: str, match: re.Match[str]) -> int:
    if match["paragraph"]:
        return _between_paragraphs(text, match.start(), match.end(), match["paragraph"].count("\n"))
    if match["chinese"]:
        return SENTENCE
    if match["latin"]:
        stop = match.start() + 1
        short = text[match.start()] == "." and _ABBREVIATION.search(text, max(0, stop - 8), stop)
        return CLAUSE if short else SENTENCE
    if match["paragraph"] is None:
        return CLAUSE
    before = text[max(0, match.start() - 2) : match.start()].rstrip("\r")[-1:]
    if before in _INTRODUCING:
        return SOFT_LINE
    return LINE if before in _LINE_ENDS or text[match.end() : match.end() + 1] in _LINE_STARTS else SOFT_LINE


def _between_paragraphs(text: str, end: int, start: int, empty_lines: int) -> int:
    """Strength of the boundary between a paragraph that ends there and one that starts here.

    Code is indented where it belongs to what is above, and so are the further paragraphs of a list's item.
    """
    line = text.rfind("\n", 0, end) + 1
    last = text[max(line, end - _LABEL_LENGTH) : end].strip("*_ \t\r")
    if last.endswith((":", "：")) or (text[max(0, line - 2) : line] in ("", "\n\n") and _LABEL.fullmatch(last)):
        return INTRODUCED
    indent = _INDENT.match(text, start)
    width = len(indent[0].expandtabs(4)) if indent else 0
    return max(INTRODUCED, BLOCK - width // 2) + (empty_lines > 1)


def _pre_cut(text: str, atom: Atom, end: int, longest: int) -> Iterator[Atom]:
    """Cuts by characters, at spaces where there are any: no tokenizer should be given a line of megabytes."""
    yield atom
    start = atom.start
    while end - start > longest:
        limit = start + longest
        cut = 1 + max(text.rfind(space, start + 1, limit) for space in " \t\u3000")
        if cut == 0:
            near = range(limit, limit - longest // 8, -1)
            cut = max(near, key=lambda place: level_at(text, place))
        yield Atom(cut, level_at(text, cut))
        start = cut


def level_at(text: str, position: int) -> int:
    """Strength of a cut inside an atom, between two characters: WORD or weaker."""
    before, after = text[position - 1], text[position]
    if before.isspace() or after.isspace():
        return WORD
    if unicodedata.category(after)[0] == "M" or "\u200d" in (before, after) or "\U0001f3fb" <= after <= "\U0001f3ff":
        return FORBIDDEN  # inside what a reader sees as one character
    if "\U000e0020" <= after <= "\U000e007f":
        return FORBIDDEN  # inside the flag of England, say
    if "\U0001f1e6" <= before <= "\U0001f1ff" and "\U0001f1e6" <= after <= "\U0001f1ff":
        return FORBIDDEN  # the two halves of a flag
    if _IDEOGRAPHIC.match(before) or _IDEOGRAPHIC.match(after):
        return PUNCTUATION if after in _NOT_AT_START or before in _NOT_AT_END else WORD
    return BROKEN if _in_word(before) and _in_word(after) else PUNCTUATION


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_" or unicodedata.category(character)[0] == "M"


def split_atom(text: str, atom: Atom, token_starts: Sequence[int], end: int, most: int) -> Iterator[tuple[Atom, int]]:
    """Cuts an atom of more than ``most`` tokens at the starts of its tokens, between words where that suffices.

    Yields the pieces with their number of tokens. Words are put together up to a sixteenth of ``most``, which is fine
    enough to fill a chunk. Only a single word of more than ``most`` tokens is broken.
    """
    step = max(1, most // 16)
    places = [atom.start, *sorted({start for start in token_starts if atom.start < start < end})]
    levels = [level_at(text, place) for place in places[1:]]
    before = [0, *(bisect_left(token_starts, place) for place in places[1:]), len(token_starts)]

    def cut(low: int, high: int, level: int) -> Iterator[tuple[int, int]]:
        """Pieces from place ``low`` to place ``high``, as places."""
        if level < BROKEN:
            yield low, high
            return
        begin = low
        for mark, following in pairwise([low, *(i for i in range(low + 1, high) if levels[i - 1] >= level), high]):
            if mark > begin and before[following] - before[begin] > step:
                yield begin, mark
                begin = mark
            if before[following] - before[mark] > most:
                yield from cut(mark, following, level - 1)
                begin = following
        if begin < high:
            yield begin, high

    for low, high in cut(0, len(places), WORD):
        yield Atom(places[low], levels[low - 1] if low else atom.level), before[high] - before[low]
