"""Documents cut anew from their stored chunks, where the sources are not at hand.

What is stored of a document are its chunks: each a piece of the text without the white space around it, under a title
of document title and headings, and neighbours may share some of it. So the text comes back up to the following:

- The head of a table, which each of its chunks begins with, is there once.
- Chunks that share text are put together where they do. What repeats itself exactly at that place (``la la la``) may
  come back with one repetition less, but each stored chunk is there as it was.
- What stood between chunks that share none is not stored. They become paragraphs of their own where one of them has
  several, go on in their line where they are of one line each and the first ends as a sentence or clause does, and
  else stand on lines of their own.
- Chunks of different titles are not put together: what was cut at a heading stays cut there.
- A chunk's metadata (its page) is that of the stored chunk that it begins in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, pairwise

from tokenizers import Tokenizer

from pipeline.ingestion.boundaries import WORD, level_at
from pipeline.ingestion.chunking import Chunker
from pipeline.ingestion.markdown import tables
from pipeline.types import Chunk, Document


def fits(chunks: Sequence[Chunk], tokenizer: Tokenizer, chunk_tokens: int) -> bool:
    """Whether no chunk has more tokens than that, special tokens not counted."""
    encodings = tokenizer.encode_batch([chunk.full_text for chunk in chunks], add_special_tokens=False)
    # A tokenizer that truncates does so above the size of a chunk, and one that pads does not fill the mask.
    return all(sum(encoding.attention_mask) <= chunk_tokens for encoding in encodings)


def recut(chunks: Sequence[Chunk], chunker: Chunker, *, overlapping: bool) -> list[Chunk]:
    """The chunks of one document (all of them, in their order) as chunks of this chunker.

    ``overlapping``: whether neighbours may share text. Document id and content hash stay, so an ingest of the
    unchanged source finds nothing to do.
    """
    made: list[Chunk] = []
    for title, group in groupby(chunks, key=lambda chunk: chunk.title):
        section = list(group)
        text, starts = put_together([chunk.text for chunk in section], overlapping=overlapping)
        # "Pages" tell in which of the stored chunks a new one begins.
        document = Document(id=section[0].document_id, text=text, title=title, page_starts=tuple(starts))
        for piece in chunker.chunk(document):
            origin = section[piece.metadata["page"] - 1]
            made.append(replace(origin, text=piece.text, title=piece.title))
    return [replace(chunk, index=index, count=len(made)) for index, chunk in enumerate(made)]


def put_together(texts: Sequence[str], *, overlapping: bool) -> tuple[str, list[int]]:
    """The text that these pieces were cut from, and where each of them begins in it."""
    parts, starts, length = [texts[0]], [0], len(texts[0])
    head = _last_head(texts[0])
    for before, text in pairwise(texts):
        own = text
        if head and text.startswith(head) and _ends_in_row(before):
            text = text[len(head) :]
        head = _last_head(own) or head
        shared = _shared(before, text) if overlapping else 0
        added = text[shared:] if shared else f"{_between(before, text)}{text}"
        parts.append(added)
        length += len(added)
        starts.append(length - len(text))
    return "".join(parts), starts


def _last_head(text: str) -> str:
    """Header and rule of the last table that begins in a text; empty where none does."""
    found = ""
    for table in tables(text) if "|" in text else ():
        found = text[table.start : table.body]
    return found


def _ends_in_row(text: str) -> bool:
    return text.endswith("|") or _row(text.rpartition("\n")[2])


def _row(line: str) -> bool:
    return line.lstrip(" \t").startswith("|")


def _between(before: str, after: str) -> str:
    """What stands between two chunks that share nothing, going by the lines that they have themselves."""
    rows = _ends_in_row(before) + _row(after)
    if rows == 2:
        return "\n"
    if rows or "\n\n" in before or "\n\n" in after:
        return "\n\n"
    if "\n" not in before + after and before[-1] in ",;.!?，；、。！？…":
        return " " if before[-1].isascii() else ""
    return "\n"


def _shared(before: str, after: str) -> int:
    """How many characters of the end of one text are the beginning of the next: the most that may be one overlap.

    An overlap begins where words do, and is never all of a chunk.
    """
    for length in range(min(len(before), len(after)) - 1, 0, -1):
        if before.endswith(after[:length]) and level_at(before, len(before) - length) >= WORD:
            return length
    return 0
