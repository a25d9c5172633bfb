"""Where the pages of a document begin in its text."""

from __future__ import annotations

import re
from collections.abc import Sequence

SLIDE_MARK = "\n\n⟦slide {page_num}⟧\n\n"
"""What the extractor is told to write before each slide."""

_MARK = re.compile(r"\s*⟦slide (\d+)⟧\s*")
# Letters and digits that identify a place, how far apart in a page they are tried, and how far ahead they are looked
# for: the text has the pages' letters in the same order, but perhaps not all of them.
_PROBE, _STEP, _AHEAD = 40, 160, 20_000
_LOST_SHARE = 5


def take_out_marks(text: str) -> tuple[str, tuple[int, ...]]:
    """The text without the marks, and where each slide begins in it."""
    pieces = _MARK.split(text)
    found, numbers, slides = pieces[0], pieces[1::2], pieces[2::2]
    starts: list[int] = []
    for number, slide in zip(numbers, slides, strict=True):
        if found:
            found += "\n\n"
        # A number that is left out is that of a slide without text: it begins where the next one does.
        starts += [len(found)] * (int(number) - len(starts))
        found += slide
    return found, tuple(starts)


def find_pages(text: str, pages: Sequence[str]) -> tuple[int, ...]:
    """Where each page begins in a text that was made from all of them, with other white space and marks of its own.

    A page of which nothing is found begins where the one after it does, or at the end. If that are many, as in a text
    that the extractor took for a table, nothing is known: no number is better than a wrong one.
    """
    places = [i for i, char in enumerate(text) if char.isalnum()]
    letters = "".join(text[i] for i in places)
    places.append(len(text))
    starts: list[int | None] = []
    at = 0
    for page in pages:
        own = "".join(filter(str.isalnum, page))
        found = _find(letters, own, at)
        if found is None:
            starts.append(None)
            continue
        earliest, known = found
        # Where its first words are not in the text, it begins with the first line that may be its own.
        line = text.find("\n", places[earliest], places[known])
        starts.append(_with_marks(text, places[earliest]) if line < 0 else _next_word(text, line))
        at = earliest + len(own) // 2  # so that a page is not taken for the one before it that begins alike
    lost = sum(start is None and any(map(str.isalnum, page)) for start, page in zip(starts, pages, strict=True))
    if lost > len(pages) // _LOST_SHARE:
        return ()
    found_or_next = []
    following = len(text)
    for start in reversed(starts):
        following = following if start is None else start
        found_or_next.append(following)
    return (0, *reversed(found_or_next[:-1])) if pages else ()


def _with_marks(text: str, place: int) -> int:
    """The start of the line, if there are only marks of a heading or list between it and the place."""
    start = text.rfind("\n", 0, place) + 1
    return place if any(map(str.isalnum, text[start:place])) else start


def _next_word(text: str, place: int) -> int:
    return len(text) - len(text[place:].lstrip())


def _find(letters: str, page: str, after: int) -> tuple[int, int] | None:
    """(where the page may begin, where the first words of it were found) in the letters."""
    for offset in range(0, max(1, len(page) - _PROBE // 2), _STEP):
        probe = page[offset : offset + _PROBE]
        if probe and (found := letters.find(probe, after, after + _AHEAD + offset)) >= 0:
            return max(after, found - offset), found
    return None
