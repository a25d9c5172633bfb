"""Documents into chunks: along headings, paragraphs and sentences, measured in the embedder's own tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from semantic_text_splitter import MarkdownSplitter, TextSplitter
from tokenizers import Tokenizer

from pipeline.errors import SettingsError
from pipeline.text import well_formed
from pipeline.types import Chunk, Document

SEPARATOR = " > "
# The splitter looks at all that is left of its text again and again; in blocks its time grows in line with the text.
_BLOCK = 50_000
# A run without any place to break (base64, a giant line of Chinese without punctuation) is broken here.
_LONGEST_RUN = 2_000
_BREAKS = ("\n\n", "\n", "。", "！", "？", ". ", "；", "; ", "，", ", ", " ")
_RUN = re.compile(rf"[^\s。！？；，、.!?;,]{{{_LONGEST_RUN}}}")
_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


@dataclass(frozen=True, slots=True)
class Heading:
    """A Markdown heading: where its first and its last line begin and end in the text, its level, its words."""

    start: int
    end: int
    level: int
    text: str


class Chunker:
    """Cuts documents into chunks of at most ``chunk_tokens`` tokens, title included. Safe to use from many threads.

    Neighbouring chunks share up to ``overlap`` tokens where a whole sentence or word fits into them.

    Raises:
        SettingsError: the two numbers make no sense together.
    """

    def __init__(self, tokenizer: Tokenizer, *, chunk_tokens: int = 256, overlap: int = 32) -> None:
        if chunk_tokens < 16:
            raise SettingsError(f"a chunk needs at least 16 tokens, not {chunk_tokens}")
        if not 0 <= overlap * 2 < chunk_tokens:
            raise SettingsError(f"an overlap of {overlap} tokens is not less than half a chunk of {chunk_tokens}")
        self._tokenizer = tokenizer
        self._chunk_tokens = chunk_tokens
        self._overlap = overlap

    def chunk(self, document: Document) -> list[Chunk]:
        """The document's chunks in order; none if it has no text."""
        text = well_formed(document.text)
        headings = list(find_headings(text)) if document.markdown else []
        room, pieces = self._split(document, text, headings)
        pieces = [
            (start, piece, path)
            for i, (start, piece, path) in enumerate(pieces)
            if not _only_headings(start, piece, headings, pieces[i + 1][2] if i + 1 < len(pieces) else ())
        ]
        content_hash = document.content_hash()
        return [
            Chunk(
                document_id=document.id,
                content_hash=content_hash,
                index=index,
                count=len(pieces),
                text=piece,
                title=self._fit(path, room),
                source=document.source,
                metadata=document.metadata,
            )
            for index, (_, piece, path) in enumerate(pieces)
        ]

    def _split(
        self, document: Document, text: str, headings: list[Heading]
    ) -> tuple[int, list[tuple[int, str, tuple[str, ...]]]]:
        """Tokens kept for titles, and the pieces as (offset, text, path of titles)."""
        title = well_formed(document.title).strip()
        paths = list(_paths(title, headings))
        longest = max((self._tokens(SEPARATOR.join(path)) for _, path in paths), default=0)
        room = min(longest, self._chunk_tokens // 2)
        capacity = self._chunk_tokens - room
        kind = MarkdownSplitter if document.markdown else TextSplitter
        splitter = kind.from_callback(self._tokens, capacity, overlap=min(self._overlap, (capacity - 1) // 2))
        pieces = []
        at = 0
        for start, block in _blocks(text):
            for offset, piece in splitter.chunk_indices(block):
                if not piece.strip():
                    continue
                begin = start + offset
                # Headings right at the beginning of a chunk are already above it.
                seen = _after_headings(begin, headings)
                while at + 1 < len(paths) and paths[at + 1][0] <= seen:
                    at += 1
                pieces.append((begin, piece, paths[at][1]))
        return room, pieces

    def _tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _fit(self, path: tuple[str, ...], room: int) -> str:
        """The path joined, without its middle or beginning where it is too long: the nearest heading tells most."""
        parts = list(path)
        while len(parts) > 1 and self._tokens(SEPARATOR.join(parts)) > room:
            del parts[1 if len(parts) > 2 else 0]
        joined = SEPARATOR.join(parts)
        while joined and self._tokens(joined) > room:
            joined = joined[: len(joined) * 3 // 4].rstrip()
        return joined


def find_headings(text: str) -> Iterator[Heading]:
    """ATX (``## x``) and setext (underlined) headings of Markdown, in order, not those inside fenced code."""
    at = 0
    fence = ""
    before: tuple[int, str] | None = None  # start and words of a line that an underline would make a heading
    for line in text.splitlines(keepends=True):
        bare = line.rstrip("\r\n")
        marks = _FENCE.match(bare)
        if fence:
            if marks and marks[1].startswith(fence) and not bare.strip(" `~"):
                fence = ""
            before = None
        elif marks:
            fence = marks[1]
            before = None
        elif match := _ATX.match(bare):
            if match[2]:
                yield Heading(at, at + len(line), len(match[1]), match[2])
            before = None
        elif before and (match := _SETEXT.match(bare)):
            yield Heading(before[0], at + len(line), 1 if match[1][0] == "=" else 2, before[1])
            before = None
        else:
            # Only a single line of words: a longer paragraph above "---" is rarely meant as a heading.
            first = before is None and (at == 0 or text[:at].endswith(("\n\n", "\r\n\r\n")))
            before = (at, bare.strip()) if bare.strip() and first and not bare.lstrip().startswith(("|", ">")) else None
        at += len(line)


def _paths(title: str, headings: list[Heading]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(offset, titles above what follows), first for the text's beginning, then for each heading."""
    root = (title,) if title else ()
    yield -1, root
    stack: list[Heading] = []
    for heading in headings:
        while stack and stack[-1].level >= heading.level:
            stack.pop()
        stack.append(heading)
        words = tuple(above.text for above in stack)
        # The first heading of a document usually repeats its title.
        yield heading.start, words if words[0] == title else root + words


def _after_headings(begin: int, headings: list[Heading]) -> int:
    """Offset of the last heading of those that follow each other directly from ``begin`` on, or ``begin``."""
    end = begin
    for heading in headings:
        if heading.start == end or (end != begin and heading.start - end <= 2 and heading.start > begin):
            begin, end = heading.start, heading.end
        elif heading.start > end + 2:
            break
    return begin


def _only_headings(start: int, piece: str, headings: list[Heading], next_path: tuple[str, ...]) -> bool:
    """Whether a piece is nothing but headings that stand in the title of the next one."""
    inside = [heading for heading in headings if start <= heading.start < start + len(piece)]
    if not inside or any(heading.text not in next_path for heading in inside):
        return False
    return sum(heading.end - heading.start for heading in inside) >= len(piece.strip())


def _blocks(text: str) -> Iterator[tuple[int, str]]:
    """The text in parts of bounded length with their offsets, cut at the best break near each part's end."""
    start = 0
    while start < len(text):
        end = min(start + _BLOCK, len(text))
        if end < len(text):
            places = (
                text.rfind(mark, start + _BLOCK // 2, end) + len(mark) for mark in _BREAKS if mark in text[start:end]
            )
            end = next((place for place in places if place > start + _BLOCK // 2), end)
        for run in _RUN.finditer(text, start, end):
            yield start, text[start : run.end()]
            start = run.end()
        if start < end:
            yield start, text[start:end]
        start = end
