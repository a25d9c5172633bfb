"""JSONL: a document a line, read as a stream."""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import DocumentError, NoTextError
from pipeline.ingestion.encoding import decode, decode_as, find_encoding, is_utf8
from pipeline.reports import Failure
from pipeline.types import Document

_OWN = frozenset({"id", "_id", "text", "title", "metadata"})
MAX_LINE = 100_000_000
"""Bytes of the longest line that is read: a file of gigabytes without line ends is no JSONL."""
# Enough lines to judge the encoding of those that are not UTF-8 by.
_SAMPLE = 1_000_000
# Chinese in UTF-8 lies beyond; two bytes of GB18030 may be a valid character up to it by chance.
_TWO_BYTES = "\u07ff"


def read_jsonl(path: Path, source: str, max_line: int = MAX_LINE) -> Iterator[Document | Failure]:
    """Documents of the lines ``{"id", "text", "title", "metadata"}``; a Failure for each line that is not of this form.

    ``_id`` is accepted for ``id``. Further fields become metadata, so that they can be filtered on.

    Raises:
        DocumentError: no line of the file can be read.
        NoTextError: there is none.
    """
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise DocumentError("UTF-16: JSONL must be UTF-8, convert it first")
        file.seek(0)
        encoding, throughout = _encoding(file)
        found = False
        for number, raw in _lines(file, max_line):
            if raw is not None and not raw.strip():
                continue
            found = True
            try:
                if raw is None:
                    raise ValueError(f"longer than {max_line / 1e6:g} MB")
                yield _document(json.loads(_text(raw, encoding, throughout)), source)
            except json.JSONDecodeError as error:
                yield Failure(
                    source, f"line {number}: not JSON ({error.msg.removesuffix(' at')} at column {error.colno})"
                )
            except (ValueError, RecursionError) as error:
                yield Failure(source, f"line {number}: {error}")
        if not found:
            raise NoTextError("empty file")


def _lines(file: BinaryIO, longest: int) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their numbers; None for a line that is too long."""
    number = 0
    while raw := file.readline(longest + 1):
        number += 1
        if len(raw) <= longest:
            yield number, raw
            continue
        while raw and not raw.endswith(b"\n"):
            raw = file.readline(longest)
        yield number, None


def _encoding(file: BinaryIO) -> tuple[str | None, bool]:
    """(encoding of the lines that are not UTF-8, whether no other line is Chinese), from the file's beginning.

    A single line is often too short to tell. None where no line of the beginning is beyond UTF-8.
    """
    sample = file.read(_SAMPLE)
    file.seek(0)
    lines = sample.split(b"\n")
    if len(sample) == _SAMPLE and len(lines) > 1:
        lines.pop()  # cut off
    others = [line for line in lines if not is_utf8(line)]
    if not others:
        return None, False
    # All of them together are judged best, but where a few are in another encoding they fit none.
    together = b"\n".join(others)
    votes = Counter({find_encoding(together): len(together) // 2})
    for line in others:
        votes[find_encoding(line)] += len(line)
    encoding = votes.most_common(1)[0][0]
    chinese = (is_utf8(line) and max(line.decode("utf-8", "replace"), default="") > _TWO_BYTES for line in lines)
    return encoding, encoding == "gb18030" and not any(chinese)


def _text(raw: bytes, encoding: str | None, throughout: bool) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return _other(raw, encoding)
    if throughout and not text.isascii() and max(text) <= _TWO_BYTES:
        return raw.decode("gb18030", "replace")
    return text


def _other(raw: bytes, encoding: str | None) -> str:
    """The text of a line that is not UTF-8: in the encoding of such lines in this file, unless it does not fit."""
    if encoding is not None and not is_utf8(raw):
        text = decode_as(raw, encoding)
        broken = text.count("\ufffd")
        if not broken or broken <= sum(char > "~" for char in text) // 5:
            return text
    judged = decode(raw)
    if judged is None:
        raise ValueError("no text in any known encoding")
    return judged


def _document(line: Any, source: str) -> Document:
    if not isinstance(line, dict):
        raise ValueError('not a JSON object; expected {"id": ..., "text": ...}')
    id_ = line.get("id", line.get("_id"))
    if isinstance(id_, bool) or not isinstance(id_, str | int) or id_ == "":
        raise ValueError('no "id" (text or number)')
    text = line.get("text")
    if not isinstance(text, str):
        raise ValueError('no "text"' if text is None else '"text" is not a string')
    if not text.strip():
        raise ValueError('empty "text"')
    metadata = line.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ValueError('"metadata" is not an object')
    title = line.get("title")
    if isinstance(title, int | float) and not isinstance(title, bool):  # a year, say
        title = str(title)
    further = {name: value for name, value in line.items() if name not in _OWN}
    return Document(
        id=str(id_),
        text=text.replace("\0", ""),
        title=title if isinstance(title, str) else "",
        source=source,
        metadata={**further, **metadata},
        find_language=True,
    )
