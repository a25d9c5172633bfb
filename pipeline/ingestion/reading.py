"""Whatever was given to read, as a stream of documents and failures in batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from pipeline import deadline
from pipeline.errors import DocumentError, SettingsError
from pipeline.files import as_path
from pipeline.ingestion.changes import is_within
from pipeline.ingestion.loaders import MAX_BYTES, find_files, is_lines, is_there, load, real_source
from pipeline.reports import Failure, NoText
from pipeline.types import Document

# Documents looked up in the ledger at once: few enough to stay small, many enough that the round trip is cheap.
_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 4_000_000
_TAKEN = "what is taken are documents (pipeline.Document) and paths of files and folders"


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents and failures of some files."""

    items: list[Document | Failure]
    repeated: list[str]
    """Ids of documents that were left out, because another one of this id comes later."""
    skipped: list[NoText]
    """Files that were met in a folder and hold no text."""
    files_done: int
    files_total: int


def read(
    items: Iterable[Document | str | Path],
    roots: list[str],
    max_bytes: int = MAX_BYTES,
    unread: Set[str] = frozenset(),
    held: Callable[[str], bool] | None = None,
    ignored: Iterable[str] = (),
) -> Iterator[Batch]:
    """Documents and failures in batches; ``roots`` collects the absolute paths that were given.

    A path that is not there has nothing in it if ``held`` is given and knows of documents there, else it is an error.
    Files that are ``unread``, or in a folder that is, are passed over, and so are ``ignored`` folders (absolute paths)
    within those that were given. A file that holds no text is a failure only where it was given by itself, one of more
    than ``max_bytes`` that has to be read whole always. Of several documents with one id only the last is given, as far
    as it can be known: in all that is in a sequence, but in an iterator only in one file or folder at a time. For that
    the ids in JSONL files are read beforehand.
    """
    groups: Iterable[Sequence[Document | str | Path]]
    if isinstance(items, Sequence):
        # A mistyped last path shall not be found out after hours of work on the first.
        for item in items:
            if not isinstance(item, Document):
                _check(item, held)
        groups = [items]
    else:
        groups = ([item] for item in items)
    batch: list[Document | Failure] = []
    repeated: list[str] = []
    skipped: list[NoText] = []
    size = 0
    done = total = 0
    named: set[str] = set()
    for group in groups:
        known = len(roots)
        inputs = list(_found(group, roots, unread, held, ignored))
        named.update(roots[known:])
        total += sum(isinstance(one, Path) for one in inputs)
        left = _repeated(inputs)
        for one in inputs:
            deadline.check()
            for thing in load(one, max_bytes) if isinstance(one, Path) else [one]:
                if isinstance(thing, Document):
                    if left.get(thing.id, 1) > 1:
                        left[thing.id] -= 1
                        repeated.append(thing.id)
                        continue
                    size += len(thing.text)
                if isinstance(thing, NoText) and thing.source not in named:
                    skipped.append(thing)
                else:
                    batch.append(thing)
                if max(len(batch), len(skipped)) >= _BATCH_DOCUMENTS or size >= _BATCH_CHARACTERS:
                    yield Batch(batch, repeated, skipped, done, total)
                    batch, repeated, skipped, size = [], [], [], 0
            done += isinstance(one, Path)
    yield Batch(batch, repeated, skipped, done, total)


def as_items(
    items: Document | str | os.PathLike[str] | Iterable[Document | str | Path],
) -> Iterable[Document | str | Path]:
    """What was given, one or several.

    Raises:
        SettingsError: it is neither, such as a dictionary, which would be read as the names of its keys.
    """
    if isinstance(items, Document):
        return [items]
    if isinstance(items, str | os.PathLike):
        return [as_path(items)]
    if isinstance(items, Mapping | bytes | bytearray) or not isinstance(items, Iterable):
        raise SettingsError(f"{_TAKEN}, one or an iterable of them, not {items!r:.100}")
    return items


def hash_of(document: Document) -> str | Failure:
    """The document's content hash, or why it cannot be stored: its metadata may be anything."""
    try:
        return document.content_hash()
    except DocumentError as error:
        return Failure(document.source, str(error))
    except Exception as error:  # noqa: BLE001  whatever the object raises
        return Failure(document.source, f"{document.id}: its metadata cannot be stored: {error!r}")


def _check(item: str | Path, held: Callable[[str], bool] | None) -> Path:
    if not isinstance(item, str | os.PathLike):
        raise DocumentError(f"{_TAKEN}, not {item!r:.100}")
    path = as_path(item)
    if not is_there(path) and (held is None or not held(real_source(path))):
        raise SettingsError(f"no such file or folder: {path}")
    return path


def _found(
    items: Sequence[Document | str | Path],
    roots: list[str],
    unread: Set[str],
    held: Callable[[str], bool] | None,
    ignored: Iterable[str],
) -> Iterator[Document | Path]:
    """The documents, and the files that the paths lead to, each once."""
    seen: set[str] = set()
    named = {real_source(Path(item)) for item in items if not isinstance(item, Document)}
    for item in items:
        if isinstance(item, Document):
            yield item
        else:
            path = _check(item, held)
            root = real_source(path)
            roots.append(root)
            seen.update(passed_over(ignored, [root], named))
            for file in find_files([path], seen) if is_there(path) else ():
                if not unread or not is_within(real_source(file), unread):
                    yield file


def passed_over(ignored: Iterable[str], roots: Iterable[str], named: Iterable[str] = ()) -> list[str]:
    """The ignored folders that lie in one of the roots, unless they, or something in them, were asked for by name."""
    within, asked = set(roots), {*roots, *named}
    return [
        folder for folder in ignored if is_within(folder, within) and not any(is_within(one, {folder}) for one in asked)
    ]


def _repeated(inputs: Iterable[Document | Path]) -> dict[str, int]:
    """Ids that are there more than once -> how often."""
    seen: set[str] = set()
    counts: dict[str, int] = {}
    for one in inputs:
        if isinstance(one, Document):
            ids: Iterable[str] = [one.id]
        elif is_lines(one):
            ids = (thing.id for thing in load(one) if isinstance(thing, Document))
        else:
            continue  # its id is its path, which is met once
        for id_ in ids:
            if id_ in seen:
                counts[id_] = counts.get(id_, 1) + 1
            seen.add(id_)
    return counts
