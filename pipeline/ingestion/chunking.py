"""Documents into chunks: pieces of at most so many tokens, cut where a reader would cut.

Why not ``semantic-text-splitter``: it tokenizes each piece of text several times over. The same result here takes two
passes of the tokenizer, one to count and one to make sure.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

from tokenizers import Tokenizer

from pipeline.errors import SettingsError
from pipeline.ingestion.boundaries import BROKEN, CLAUSE, PARAGRAPH, WORD, Atom, atoms, level_at, split_atom
from pipeline.ingestion.counting import CHARACTERS_PER_TOKEN, by_length, weigh
from pipeline.ingestion.language import language
from pipeline.ingestion.markdown import Section, Table, fences, sections, tables
from pipeline.text import well_formed
from pipeline.types import Chunk, Document
from pipeline.windows import without_limits

MIN_CHUNK_TOKENS = 16
# A section of less than this share of a chunk is put together with its neighbours.
_SMALL_SECTION = 4
# A table's head of more than this share of a chunk is not repeated.
_LONG_HEAD = 4
_CHUNKS_AT_ONCE = 256
# Between a web page's heading and the name of its site: signs that stand apart, or are not part of any word.
_SEPARATED = re.compile(r"\s*[|–—·•»«｜－＿：]|\s[-_:]|[-_:]\s|(?<=[^\x00-\x7f])[-_:]")
_SEPARATED_BEFORE = re.compile(r"[|–—·•»«｜－＿：_:-]\s*$")
# Bytes that a token of English or Chinese has at most, most of the time.
_SHORT_BYTES = 4


@dataclass(frozen=True, slots=True)
class _Title:
    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class _Span:
    """A chunk in the making: a part of the document's text under one title."""

    start: int
    end: int
    title: str
    head: str = ""
    """Header and rule of the table that it begins inside of, to be put before it."""

    def in_full(self, text: str) -> str:
        return f"{self.title}\n{self.chunk(text)}".removeprefix("\n")

    def chunk(self, text: str) -> str:
        return self.head + text[self.start : self.end]


class Chunker:
    """Cuts documents into chunks. Holds no state between calls and may be shared between threads.

    A chunk's title (document title and headings, joined by " > ") and text together are at most ``chunk_tokens`` tokens
    of ``tokenizer``, without special tokens; the text may always take half of them, and a title longer than the other
    half is cut. Neighbouring chunks of a section share up to ``overlap`` tokens, in whole sentences, lines or
    paragraphs (words, where a sentence is cut), and nothing where none of these fits. A chunk that goes on with a
    Markdown table has the table's header above its rows: nothing else tells what is in its columns.

    Raises:
        SettingsError: ``chunk_tokens`` is below 16, or ``overlap`` is negative or not less than half of it.
    """

    def __init__(self, tokenizer: Tokenizer, *, chunk_tokens: int = 256, overlap: int = 32) -> None:
        if chunk_tokens < MIN_CHUNK_TOKENS:
            raise SettingsError(f"a chunk needs at least {MIN_CHUNK_TOKENS} tokens, not {chunk_tokens}")
        if not 0 <= 2 * overlap < chunk_tokens:
            raise SettingsError(
                f"an overlap of {overlap} tokens does not fit chunks of {chunk_tokens}: it must be 0 or more, and less "
                f"than half of the chunk"
            )
        self._tokenizer = without_limits(tokenizer)
        self.chunk_tokens = chunk_tokens
        self.overlap = overlap

    def chunk(self, document: Document) -> list[Chunk]:
        """The document's chunks in order; together they cover its text. An empty list for a document without text."""
        text = well_formed(document.text)
        if not text.strip():
            return []
        spans = self._short(document, text) or list(self._fit(text, list(self._spans(document, text))))
        content_hash = document.content_hash()
        found = {"modified": document.modified, "language": language(text) if document.find_language else ""}
        found = {name: value for name, value in found.items() if value}
        metadata = {**found, **document.metadata} if found else document.metadata
        return [
            Chunk(
                document_id=document.id,
                content_hash=content_hash,
                index=index,
                count=len(spans),
                text=span.chunk(text),
                title=span.title,
                source=document.source,
                metadata=_with_page(metadata, document.page_starts, span.start),
            )
            for index, span in enumerate(spans)
        ]

    # ------------------------------------------------------------ cutting

    def _short(self, document: Document, text: str) -> list[_Span]:
        """The one chunk of a text that is short enough for it; nothing where that is not so, or not known at once.

        Most documents are such, and this takes one pass of the tokenizer instead of two, and no look at boundaries.
        """
        if document.markdown or len(text.encode()) > _SHORT_BYTES * self.chunk_tokens:
            return []
        name = _name(document)
        span = _trimmed(text, _Span(0, len(text), self._title([name]).text if name else ""))
        if span is None:
            return []
        full = span.in_full(text)
        return [span] if len(self._tokenizer.encode(full, add_special_tokens=False)) <= self.chunk_tokens else []

    def _spans(self, document: Document, text: str) -> Iterator[_Span]:
        """Chunks as the counts of the first pass suggest."""
        parts = sections(text) if document.markdown else [Section(0, 0, ())]
        name = _name(document)
        said = _heading_in(name, parts)
        titles: dict[tuple[str, ...], _Title] = {}

        def title(path: tuple[str, ...]) -> _Title:
            if path not in titles:
                own = path[1:] if path[:1] == (said,) else path
                titles[path] = self._title([name, *own] if name else list(own))
            return titles[path]

        pieces = _cut_at(atoms(text, longest=CHARACTERS_PER_TOKEN * self.chunk_tokens // 2), parts)
        weights = weigh(self._tokenizer, text, pieces)
        heads = list(tables(text)) if "|" in text else []
        if document.markdown:
            _keep(pieces, [(start, end, PARAGRAPH) for start, end in fences(text)])
        if heads:
            _keep(pieces, [(head.start, head.body + 1, CLAUSE) for head in heads])
        firsts = [bisect_left(pieces, part.start, key=_start) for part in parts] + [len(pieces)]
        sizes = [sum(weights[low:high]) for low, high in pairwise(firsts)]

        index = 0
        while index < len(parts):
            following, path = self._together(parts, sizes, index, title(parts[index].path))
            low, high = firsts[index], firsts[following]
            end = pieces[high].start if high < len(pieces) else len(text)
            heading = title(path)
            yield from self._pack(text, pieces[low:high], weights[low:high], end, heading, heads)
            index = following

    def _together(
        self, parts: Sequence[Section], sizes: Sequence[int], index: int, title: _Title
    ) -> tuple[int, tuple[str, ...]]:
        """Small sections that stand side by side, or one below the other, make one chunk.

        Returns the first section after them, and the headings that all of them stand under.
        """
        first, size, path = parts[index], sizes[index], parts[index].path
        following = index + 1
        while (
            following < len(parts)
            and size < self.chunk_tokens // _SMALL_SECTION
            and parts[following].level >= first.level
            and size + sizes[following] <= self.chunk_tokens - title.tokens
        ):
            size += sizes[following]
            path = _common(path, parts[following].path)
            following += 1
        return following, path

    def _pack(
        self, text: str, pieces: list[Atom], weights: list[int], end: int, title: _Title, heads: Sequence[Table]
    ) -> Iterator[_Span]:
        """Fills chunks with the pieces of a section; each ends at the strongest boundary of its second half."""
        capacity = self.chunk_tokens - title.tokens
        pieces, weights = self._split_long(text, pieces, weights, end, capacity)
        total = [0, *accumulate(weights)]
        places = [piece.start for piece in pieces] + [end]
        count = len(pieces)
        start, done = 0, 0
        while done < count:
            head = self._head(text, places[start], heads)
            room = capacity - head.tokens
            left = total[count] - total[start]
            if left <= room:
                stop = count
            else:
                # What is left for the last chunk shall not be a mere crumb.
                limit = total[start] + min(room, left - room // 4)
                stop = max(done + 1, bisect_right(total, limit) - 1)
                fair = max(done + 1, bisect_left(total, total[start] + room // 2))
                stop = max(range(min(fair, stop), stop + 1), key=lambda i: (pieces[i].level if i < count else 0, i))
            yield _Span(places[start], places[stop], title.text, head.text)
            done = stop
            if done < count:
                room = capacity - self._head(text, places[done], heads).tokens
                start = self._overlapping(pieces, total, done, room)

    def _overlapping(self, pieces: list[Atom], total: list[int], done: int, capacity: int) -> int:
        """The piece that the next chunk begins with, ``done`` itself or one before it.

        Of those within the overlap it is the one behind the strongest boundary, and of equals the earliest. It is none
        weaker than where the chunk before ends: the rest of a row, a record or a sentence would be taken for the
        beginning of what follows. Where the cut itself is inside one, what is before it belongs to what is behind.
        """
        room = min(self.overlap, capacity - (total[done + 1] - total[done]))
        earliest = bisect_left(total, total[done] - room)
        least = max(WORD, pieces[done].level)
        starts = [i for i in range(max(1, earliest), done) if pieces[i].level >= least]
        return max(starts, key=lambda i: (pieces[i].level, -i), default=done)

    def _split_long(
        self, text: str, pieces: list[Atom], weights: list[int], end: int, capacity: int
    ) -> tuple[list[Atom], list[int]]:
        """Cuts the pieces that alone are too long for a chunk."""
        if max(weights) <= capacity:
            return pieces, weights
        result: list[tuple[Atom, int]] = []
        ends = [piece.start for piece in pieces[1:]] + [end]
        for piece, weight, stop in zip(pieces, weights, ends, strict=True):
            if weight <= capacity:
                result.append((piece, weight))
                continue
            offsets = self._tokenizer.encode(text[piece.start : stop], add_special_tokens=False).offsets
            starts = [piece.start + offset for offset, _ in offsets]
            parts = list(split_atom(text, piece, starts, stop, capacity))
            bounds = [part.start for part, _ in parts[1:]] + [stop]
            result.extend(
                (part, max(count, by_length(bound - part.start)))
                for (part, count), bound in zip(parts, bounds, strict=True)
            )
        return [piece for piece, _ in result], [weight for _, weight in result]

    def _head(self, text: str, place: int, heads: Sequence[Table]) -> _Title:
        """What a chunk that begins there begins with: the head of the table of which it is a row, if it is not long."""
        index = bisect_right(heads, place, key=_body) - 1
        if index < 0 or place >= heads[index].end or text[place - 1] != "\n":
            return _Title("", 0)
        if by_length(heads[index].body - heads[index].start) > self.chunk_tokens // _LONG_HEAD:
            return _Title("", 0)
        head = text[heads[index].start : heads[index].body]
        tokens = max(len(self._tokenizer.encode(head, add_special_tokens=False)), by_length(len(head))) + 1
        return _Title(head, tokens) if tokens <= self.chunk_tokens // _LONG_HEAD else _Title("", 0)

    # ------------------------------------------------------------ counting

    def _title(self, names: list[str]) -> _Title:
        """Names joined by " > "; as many as fit half a chunk, the last and the first before those between."""
        most = self.chunk_tokens // 2
        while True:
            title = " > ".join(names)
            encoding = self._tokenizer.encode(title + "\n", add_special_tokens=False)
            # One more: the text's first token may count one more there than in the middle of the text.
            tokens = len(encoding) + 1
            if not title:
                return _Title("", 1)
            if tokens <= most and len(title) <= most * CHARACTERS_PER_TOKEN:
                return _Title(title, tokens)
            if len(names) > 1:
                del names[1 if len(names) > 2 else 0]
            else:
                names = [_shortened(title, encoding.offsets, most - 2)]

    def _fit(self, text: str, spans: Sequence[_Span]) -> Iterator[_Span]:
        """The same spans without white space around them; one that is over the limit after all is halved.

        The sum of the pieces' counts is mostly, but not always, the count of the whole.
        """
        for i in range(0, len(spans), _CHUNKS_AT_ONCE):
            some = [span for span in (_trimmed(text, span) for span in spans[i : i + _CHUNKS_AT_ONCE]) if span]
            full = [span.in_full(text) for span in some]
            encodings = self._tokenizer.encode_batch_fast(full, add_special_tokens=False)
            for span, encoding in zip(some, encodings, strict=True):
                if len(encoding) <= self.chunk_tokens or span.end - span.start < 2:
                    yield span
                else:
                    middle = _middle(text, span.start, span.end)
                    halves = [replace(span, end=middle), _Span(middle, span.end, span.title)]
                    yield from self._fit(text, halves)


def _with_page(metadata: Mapping[str, Any], page_starts: Sequence[int], start: int) -> Mapping[str, Any]:
    return {**metadata, "page": max(1, bisect_right(page_starts, start))} if page_starts else metadata


def _name(document: Document) -> str:
    return " ".join(well_formed(document.title).split())


def _heading_in(name: str, parts: Sequence[Section]) -> str:
    """The main heading that a document's title says, too, alone or beside the name of a site; empty if none is.

    In the titles of the chunks it is left out: they would say it twice.
    """
    folded = name.casefold()
    for heading in dict.fromkeys(part.path[0] for part in parts if part.path):
        start = heading.casefold()
        if folded.startswith(start) and (folded == start or _SEPARATED.match(folded, len(start))):
            return heading
        if folded.endswith(start) and _SEPARATED_BEFORE.search(folded[: -len(start)]):
            return heading
    return ""


def _start(atom: Atom) -> int:
    return atom.start


def _body(table: Table) -> int:
    return table.body


def _keep(pieces: list[Atom], blocks: Sequence[tuple[int, int, int]]) -> None:
    """Boundaries between the begin and the end of a block are at most as strong as it says."""
    for start, end, most in blocks:
        low, high = bisect_right(pieces, start, key=_start), bisect_left(pieces, end, key=_start)
        pieces[low:high] = [Atom(piece.start, min(piece.level, most)) for piece in pieces[low:high]]


def _cut_at(pieces: list[Atom], parts: Sequence[Section]) -> list[Atom]:
    """The pieces with a boundary at each section's start, where clauses did not give one."""
    known = {piece.start for piece in pieces}
    missing = [Atom(part.start, WORD) for part in parts if part.start not in known]
    return sorted([*pieces, *missing]) if missing else pieces


def _common(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    n = 0
    while n < min(len(first), len(second)) and first[n] == second[n]:
        n += 1
    return first[:n]


def _trimmed(text: str, span: _Span) -> _Span | None:
    """Without white space around it, but with the first line's indent; None where nothing is left."""
    piece = text[span.start : span.end]
    body = piece.lstrip()
    if not body:
        return None
    start = span.start + len(piece) - len(body)
    indent = text.rfind("\n", span.start, start) + 1 or span.start
    if not text[indent:start].strip(" \t"):
        start = indent
    return replace(span, start=start, end=span.start + len(piece.rstrip()))


def _middle(text: str, start: int, end: int) -> int:
    """The place near the middle that is best to cut at."""
    middle, reach = (start + end) // 2, (end - start) // 4
    near = [place for d in range(reach + 1) for place in (middle - d, middle + d) if start < place < end]
    return max(near, key=lambda place: level_at(text, place), default=middle)


def _shortened(title: str, offsets: Sequence[tuple[int, int]], most: int) -> str:
    """The title's beginning, of at most ``most`` tokens, cut between words if that costs no more than half of it."""
    limit = min(offsets[most][0] if len(offsets) > most else len(title) - 1, most * CHARACTERS_PER_TOKEN)
    places = range(limit, max(limit // 2, 1), -1)
    best = next((p for p in places if level_at(title, p) >= WORD), None)
    return title[: best or next((p for p in places if level_at(title, p) >= BROKEN), limit)].rstrip()
