"""Whatever was given to read, as a stream of documents and failures in batches."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SettingsError
from pipeline.ingestion.loaders import MAX_BYTES, find_files, is_there, load
from pipeline.types import Document, Failure

# Documents looked up in the ledger at once: few enough to stay small, many enough that the round trip is cheap.
_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 4_000_000


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents and failures of some files."""

    items: list[Document | Failure]
    files_done: int
    files_total: int


def read(items: Iterable[Document | str | Path], roots: list[str], max_bytes: int = MAX_BYTES) -> Iterator[Batch]:
    """Documents and failures in batches; ``roots`` collects the absolute paths that were given.

    A file of more than ``max_bytes`` that has to be read whole is a failure.
    """
    if isinstance(items, Sequence):
        # A mistyped last path shall not be found out after hours of work on the first.
        for item in items:
            if not isinstance(item, Document) and not is_there(Path(item)):
                raise SettingsError(f"no such file or folder: {item}")
    batch: list[Document | Failure] = []
    size = 0
    done = total = 0
    for item in items:
        if isinstance(item, Document):
            loaded: Iterable[tuple[int, Document | Failure]] = [(0, item)]
        else:
            path = Path(item)
            roots.append(Path(os.path.realpath(path)).as_posix())
            files = list(find_files([path]))
            total += len(files)
            loaded = ((n, thing) for n, file in enumerate(files, done) for thing in load(file, max_bytes))
        for n, thing in loaded:
            done = max(done, n)
            batch.append(thing)
            size += len(thing.text) if isinstance(thing, Document) else 0
            if len(batch) >= _BATCH_DOCUMENTS or size >= _BATCH_CHARACTERS:
                yield Batch(batch, done, total)
                batch, size = [], 0
        done = total
    yield Batch(batch, done, total)
