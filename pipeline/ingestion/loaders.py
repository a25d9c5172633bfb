"""Files into documents. What cannot be read becomes a Failure with one clear line, never an exception."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import DocumentError, SettingsError
from pipeline.ingestion import kinds
from pipeline.ingestion.encoding import decode
from pipeline.ingestion.frontmatter import split_front_matter
from pipeline.ingestion.jsonl import read_jsonl
from pipeline.ingestion.markdown import first_heading
from pipeline.types import Document, Failure

MAX_BYTES = 100_000_000
# A ZIP-based file that unpacks to more than this is a bomb, not a document.
_MAX_UNPACKED = 1_000_000_000
_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules"})


def find_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Files as they are, folders recursively in the order of their names.

    Inside folders, hidden files and folders, ``__pycache__`` and ``node_modules`` are left out. A file is met once,
    whatever links lead to it.

    Raises:
        SettingsError: a path does not exist.
    """
    seen: set[str] = set()
    for path in paths:
        if not path.exists():
            raise SettingsError(f"no such file or folder: {path}")
        yield from _walk(path, seen)


def _walk(path: Path, seen: set[str]) -> Iterator[Path]:
    real = os.path.realpath(path)
    if real in seen:
        return
    seen.add(real)
    if not path.is_dir():
        yield path
        return
    try:
        entries = sorted(path.iterdir())
    except OSError:
        yield path  # reading it as a file says why it cannot be read
        return
    for entry in entries:
        if not entry.name.startswith(".") and entry.name not in _SKIPPED_FOLDERS:
            yield from _walk(entry, seen)


def load(path: Path, max_bytes: int = MAX_BYTES) -> Iterator[Document | Failure]:
    """The documents of a file: many for JSONL, one for any other.

    Id and source are the absolute path; a JSONL document has the line's own id. ``max_bytes`` bounds files that are
    read whole; JSONL is a stream.
    """
    source = Path(os.path.realpath(path)).as_posix()
    try:
        if path.suffix.lower() in kinds.LINES:
            yield from read_jsonl(path, source)
            return
        size = path.stat().st_size
        if size > max_bytes:
            raise DocumentError(f"{size / 1e6:.0f} MB, more than the limit of {max_bytes / 1e6:.0f} MB")
        yield _document(path, source, path.read_bytes())
    except DocumentError as error:
        yield Failure(source, str(error))
    except OSError as error:
        yield Failure(source, f"cannot be read: {error.strerror or error}")


def _document(path: Path, source: str, data: bytes) -> Document:
    if not data.strip():
        raise DocumentError("empty file")
    suffix = path.suffix.lower()
    kind = kinds.by_content(path, data) or ("html" if suffix in kinds.HTML else None)
    metadata: dict[str, Any] = {"file_name": _printable(path.name), "type": kind or suffix.lstrip(".") or "text"}
    if kind is not None:
        title, text, more = _extract(kind, data)
        metadata |= more
        markdown = True
    else:
        decoded = decode(data)
        if decoded is None:
            raise DocumentError(f"{kinds.binary_kind(data)}, no text")
        title, text, markdown = "", decoded.replace("\0", ""), suffix in kinds.MARKDOWN
        if markdown:
            fields, text = split_front_matter(text)
            title = str(fields.pop("title", ""))
            metadata = {**fields, **metadata, "type": "markdown"}
        elif suffix in kinds.TABLES:
            text = _table(text)
    if not text.strip():
        raise DocumentError(f"no text in it{' (scanned pages need OCR first)' if kind == 'pdf' else ''}")
    if not title and markdown:
        title = first_heading(text)
    return Document(
        id=source,
        text=text,
        title=title.strip() or metadata["file_name"],
        source=source,
        metadata=metadata,
        markdown=markdown,
    )


def _extract(kind: str, data: bytes) -> tuple[str, str, dict[str, Any]]:
    """(title, Markdown, metadata) by kreuzberg, which is imported for the first file that needs it."""
    if kinds.unpacked_size(data) > _MAX_UNPACKED:
        raise DocumentError(f"unpacks to more than {_MAX_UNPACKED / 1e9:.0f} GB")
    import kreuzberg

    if kind == "html" and (decoded := decode(data)) is not None:
        # Pages say their encoding in many ways; ours is found from the bytes.
        data = re.sub(r"(<meta[^>]+charset=[\"']?)[\w-]+", r"\1utf-8", decoded, flags=re.IGNORECASE).encode(
            "utf-8", "replace"
        )
    config = kreuzberg.ExtractionConfig(use_cache=False, output_format="markdown")
    try:
        result = kreuzberg.extract_bytes_sync(data, kinds.EXTRACTED[kind], config=config)
    except Exception as error:
        raise DocumentError(_why(kind, error)) from error
    found: dict[str, Any] = dict(result.metadata)
    more: dict[str, Any] = {}
    if isinstance(found.get("page_count"), int):
        more["pages"] = found["page_count"]
    return str(found.get("title") or ""), result.content.replace("\0", ""), more


def _why(kind: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if re.search(r"password|encrypt", text, re.IGNORECASE):
        return f"encrypted {kind.upper()}: remove the password first"
    return f"broken {kind.upper()}: {text[:200]}"


def _table(text: str) -> str:
    """Rows of a table as lines of ``column: value``, so that a chunk tells what its numbers are."""
    try:
        dialect: Any = csv.Sniffer().sniff(text[:20_000], delimiters=",;\t|")
        rows = list(csv.reader(io.StringIO(text), dialect))
    except csv.Error:
        return text
    if len(rows) < 2 or not all(cell.strip() for cell in rows[0]):
        return text
    header = [cell.strip() for cell in rows[0]]
    lines = (
        "; ".join(f"{name}: {cell.strip()}" for name, cell in zip(header, row, strict=False) if cell.strip())
        for row in rows[1:]
    )
    return "\n".join(line for line in lines if line)


def _printable(name: str) -> str:
    """A file name whose bytes are not valid UTF-8 has lone surrogates, which no JSON takes."""
    return name.encode("utf-8", "replace").decode()
