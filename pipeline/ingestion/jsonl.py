"""JSONL: a document a line, read as a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.types import Document, Failure

_OWN = frozenset({"id", "_id", "text", "title", "metadata"})


def read_jsonl(path: Path, source: str) -> Iterator[Document | Failure]:
    """Documents of the lines ``{"id", "text", "title", "metadata"}``; a Failure for each line that is not of this form.

    ``_id`` is accepted for ``id``. Further fields become metadata, so that they can be filtered on.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                yield _document(json.loads(raw.decode("utf-8-sig")), source)
            except UnicodeDecodeError:
                yield Failure(source, f"line {number}: not UTF-8")
            except json.JSONDecodeError as error:
                yield Failure(source, f"line {number}: not JSON ({error.msg} at column {error.colno})")
            except (ValueError, RecursionError) as error:
                yield Failure(source, f"line {number}: {error}")


def _document(line: Any, source: str) -> Document:
    if not isinstance(line, dict):
        raise ValueError('not a JSON object; expected {"id": ..., "text": ...}')
    id_ = line.get("id", line.get("_id"))
    if isinstance(id_, bool) or not isinstance(id_, str | int) or id_ == "":
        raise ValueError('no "id" (text or number)')
    text = line.get("text")
    if not isinstance(text, str):
        raise ValueError('no "text"')
    if not text.strip():
        raise ValueError('empty "text"')
    metadata = line.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ValueError('"metadata" is not an object')
    title = line.get("title")
    further = {name: value for name, value in line.items() if name not in _OWN}
    return Document(
        id=str(id_),
        text=text.replace("\0", ""),
        title=title if isinstance(title, str) else "",
        source=source,
        metadata={**further, **metadata},
    )
