"""Files into documents. What cannot be read becomes a Failure with one clear line, never an exception."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import DocumentError, ForkedError, NoTextError, SettingsError
from pipeline.ingestion import kinds
from pipeline.ingestion.changes import is_within
from pipeline.ingestion.encoding import decode
from pipeline.ingestion.extract import clean, extract
from pipeline.ingestion.frontmatter import split_front_matter
from pipeline.ingestion.jsonl import read_jsonl
from pipeline.ingestion.markdown import first_heading
from pipeline.ingestion.structured import json_text, notebook_markdown, sheet_text, table_text
from pipeline.reports import Failure, NoText
from pipeline.text import printable, title_of_path
from pipeline.types import Document

MAX_BYTES = 100_000_000
"""Size of the largest file that is read whole."""
NOT_READ = "cannot be read: "
"""What the error begins with where a file could not be read at all, which may pass without the file changing."""
# Of what is hidden, and of what Office puts beside a document that is open.
_HIDDEN = (".", "~$")
_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules"})
# What the root of a virtual environment has.
_ENVIRONMENT = "pyvenv.cfg"
# Bytes by which a file without text is known, so that no film is read to its end.
_HEAD = 4096


def find_files(paths: Sequence[Path], seen: set[str] | None = None) -> Iterator[Path]:
    """Files as they are, folders recursively in the order of their names.

    Inside folders, hidden files and folders, ``__pycache__``, ``node_modules`` and Python's virtual environments are
    left out. A file is met once, whatever links lead to it, and a link to a folder above itself leads nowhere; ``seen``
    has what was met before.

    Raises:
        SettingsError: a path does not exist.
    """
    seen = set() if seen is None else seen
    for path in paths:
        if not is_there(path):
            raise SettingsError(f"no such file or folder: {path}")
        yield from _walk(path, seen)


def is_there(path: Path) -> bool:
    """Whether there is something of this name; what may not be looked at, or is a link to itself, is there."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        return False
    except OSError:
        return True
    return True


def is_still_there(source: str) -> bool:
    """Whether a document's source is a file that exists, so that what a walk did not meet is not gone.

    As of a hidden file that was given by its name. Of a file with a document a line only the line may be gone. The name
    has to be spelled so: where "a.md" also finds "A.md" one of the two is gone.
    """
    path = Path(source)
    try:
        named = path.is_absolute() and not is_lines(path) and path.is_file()
        return named and any(entry.name == path.name for entry in path.parent.iterdir())
    except (OSError, ValueError):
        return False


def is_lines(path: Path) -> bool:
    """Whether a file has a document a line."""
    return path.suffix.lower() in kinds.LINES


def left_out(name: str) -> bool:
    """Whether a file or folder of this name, met inside a folder, is none of the documents."""
    return name.startswith(_HIDDEN) or name in _SKIPPED_FOLDERS


def real_source(path: Path) -> str:
    """What the documents of a file have as their source: its absolute path, links followed."""
    return Path(os.path.realpath(path)).as_posix()


def _walk(path: Path, seen: set[str], above: str | None = None) -> Iterator[Path]:
    """``above``: the real path of the folder in which it was met; None for a path that was given."""
    real = os.path.realpath(path)
    if real in seen:
        return
    if not os.path.isdir(path):  # noqa: PTH112  Path.is_dir raises where the folder above cannot be searched
        seen.add(real)
        yield path
        return
    if above is not None and is_within(above, {real}):
        return  # a link to what it lies in
    seen.add(real)
    try:
        entries = sorted(path.iterdir())
    except OSError:
        yield path  # reading it as a file says why it cannot be read
        return
    if above is not None and any(entry.name == _ENVIRONMENT for entry in entries):
        return
    for entry in entries:
        if not left_out(entry.name):
            yield from _walk(entry, seen, real)


def load(path: Path, max_bytes: int = MAX_BYTES) -> Iterator[Document | Failure]:
    """The documents of a file: many for JSONL, one for any other.

    Id and source are the absolute path; a JSONL document has the line's own id. ``max_bytes`` bounds files that are
    read whole; JSONL is a stream.
    """
    source = real_source(path)
    try:
        status = path.stat()
    except OSError as error:
        # A link that leads nowhere is not what it led to, which is gone.
        if isinstance(error, FileNotFoundError) and path.is_symlink():
            yield Failure(path.absolute().as_posix(), f"{NOT_READ}a link to {source}, which is not there")
        else:
            yield Failure(source, f"{NOT_READ}{error.strerror or error}")
        return
    try:
        if not stat.S_ISREG(status.st_mode):
            # Reading a pipe or device may never end; a folder comes here when it cannot be listed.
            if path.is_dir():
                raise DocumentError("a folder that cannot be read")
            raise NoTextError("pipe or device, no text")
        if is_lines(path):
            yield from read_jsonl(path, source)
            return
        with path.open("rb") as file:
            data = _content(file, status.st_size, max_bytes)
        try:
            document = _document(path, source, data, _time(status.st_mtime))
        except (DocumentError, ForkedError, OSError):
            raise
        except Exception as error:  # whatever comes of a damaged file: the others are to be read all the same
            raise DocumentError(f"damaged? {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
        yield document
    except NoTextError as error:
        promised = path.suffix.lower().lstrip(".")
        if promised in kinds.PROMISING:
            yield Failure(source, f"{error}; its name says {promised.upper()}: damaged?")
        else:
            yield NoText(source, str(error), certain=not (is_lines(path) or str(error).startswith(kinds.UNKNOWN)))
    except DocumentError as error:
        yield Failure(source, str(error))
    except OSError as error:
        yield Failure(source, f"{NOT_READ}{error.strerror or error}")


def _content(file: BinaryIO, size: int, max_bytes: int) -> bytes:
    """All that is in a file, unless its beginning tells that it is no text."""
    head = file.read(_HEAD)
    if (kind := kinds.never_text(head)) is not None:
        raise NoTextError(f"{kind}, no text")
    if size > max_bytes:
        # Up to the end of a line: a character that is cut off looks like another encoding.
        text = kinds.may_be_document(head) or decode(head[: head.rfind(b"\n") + 1 or None]) is not None
        if kinds.is_archive(file) or not text:
            raise NoTextError(f"{kinds.binary_kind(head)}, no text")
        raise DocumentError(f"{size / 1e6:.0f} MB, more than the limit of {max_bytes / 1e6:g} MB (RAG_MAX_FILE_MB)")
    file.seek(0)
    return file.read()


def _time(seconds: float) -> str:
    """The time as text; empty where the calendar has none, as for a time that was made up."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return ""


def _document(path: Path, source: str, data: bytes, modified: str) -> Document:
    if not data.strip():
        raise NoTextError("empty file")
    suffix = path.suffix.lower()
    kind = kinds.kind_of(data, suffix)
    page_starts: tuple[int, ...] = ()
    metadata: dict[str, Any] = {"file_name": printable(path.name), "type": kind or suffix.lstrip(".") or "text"}
    if kind is not None:
        found = extract(kind, data)
        title, text, page_starts = found.title, found.text, found.page_starts
        if kind in kinds.SHEETS:
            text = sheet_text(text)
        metadata |= found.metadata
        markdown = True
    else:
        decoded = decode(data)
        if decoded is None:
            raise NoTextError(f"{kinds.binary_kind(data)}, no text")
        title, text, markdown = "", clean(decoded), suffix in kinds.MARKDOWN
        if markdown:
            fields, text = split_front_matter(text)
            title = str(fields.pop("title", ""))
            metadata = {**fields, **metadata, "type": "markdown"}
        elif suffix in kinds.TABLES:
            text = table_text(text)
        elif suffix == ".ipynb" and (cells := notebook_markdown(text)) is not None:
            text, markdown = cells, True
        elif suffix == ".json":
            text = json_text(text)
    if not text.strip():
        if kind in (None, "html"):
            raise NoTextError("no text in it")
        raise DocumentError(f"no text in it{' (scanned pages need OCR first)' if kind == 'pdf' else ''}")
    if not title and markdown:
        title = first_heading(text)
    return Document(
        id=source,
        text=text,
        title=title.strip() or title_of_path(source),
        source=source,
        metadata=metadata,
        markdown=markdown,
        modified=modified,
        page_starts=page_starts,
        find_language=True,
        from_file=True,
    )
