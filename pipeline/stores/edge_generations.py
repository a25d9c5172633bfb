"""Collections of the embedded store side by side, and which of them is in use.

Beside ``documents/`` a reindex makes ``documents.2/``, ``documents.3/``, each a store of its own. The file
``documents.json`` says which one is in use, which one a rollback goes back to, and whether a rollback left that one; it
is replaced in one step. Without it ``documents/`` is in use: that is every store that was never reindexed.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import StoreError, StoreLockedError
from pipeline.files import write_atomically
from pipeline.stores import naming, shards
from pipeline.stores.locking import DirectoryLock
from pipeline.types import Generation

if TYPE_CHECKING:
    from pipeline.interfaces import Store

_building: set[Path] = set()
"""Directories of the collections that threads of this process are building."""
_registry = threading.Lock()


def in_use(path: Path) -> Path:
    """Directory of the collection that is in use under ``path``, whether there is one or not."""
    return path.parent / _pointer(path)[0]


def _pointer(path: Path) -> tuple[str, str | None, bool]:
    """Names of the collection in use and of the kept one, and whether a rollback left that one."""
    file = path.with_name(f"{path.name}.json")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        current, kept = value["current"], value["kept"]
        if any(name is not None and naming.number(path.name, name) is None for name in (current, kept)):
            raise ValueError(f"{current!r} and {kept!r} do not belong to {path.name}")
        return str(current), kept, bool(value.get("rolled_back"))
    except (FileNotFoundError, NotADirectoryError):
        return path.name, None, False
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"cannot read {file} ({error}), which names the collection in use: check its permissions; if it is "
            f'damaged, write {{"current": "{path.name}", "kept": null}} into it, or {path.name}.2 and so on instead'
        ) from error


class EdgeGenerations:
    """See :class:`pipeline.interfaces.Generations`. ``path`` is the directory of the first collection.

    Who builds a collection has it open, and an open one is locked: that keeps other processes off.
    """

    def __init__(self, path: Path, open_: Callable[[str], Store], follow: Callable[[], None]) -> None:
        self._path = path
        self._open = open_
        self._follow = follow

    def all(self) -> list[Generation]:
        current, kept, rolled_back = _pointer(self._path)
        found = []
        for name in self._names():
            state = "current" if name == current else "kept" if name == kept else "leftover"
            left = state == "kept" and rolled_back
            found.append(Generation(name, state, self._open(name).fingerprint(), rolled_back=left))  # type: ignore[arg-type]
        return found

    def _names(self) -> list[str]:
        folder = self._path.parent
        there = (entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else ()
        return naming.ordered(self._path.name, there)

    def current(self) -> str:
        return _pointer(self._path)[0]

    def next_name(self) -> str:
        return naming.following(self._path.name, self._names())

    def open(self, name: str) -> Store:
        return self._open(name)

    @contextmanager
    def building(self, name: str) -> Iterator[None]:
        directory = (self._path.parent / name).resolve()
        with _registry:
            if directory in _building:
                raise StoreLockedError(f"{directory} is being built by another thread: wait until it is done")
            _building.add(directory)
        try:
            yield
        finally:
            with _registry:
                _building.discard(directory)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Writers of this process wait; other processes have none, as this one has the lock on the directory."""
        shard = shards.acquire(in_use(self._path))
        try:
            with shard.writing:
                yield
        finally:
            shards.release(shard)

    def switch(self, to: str, *, back: bool = False) -> None:
        current = self.current()
        if to == current:
            raise StoreError(f"{to} is in use already: nothing was switched")
        self._point(to, current, rolled_back=back)
        self._follow()

    def remove(self, name: str, *, dry_run: bool = False) -> None:
        directory = self._path.parent / name
        if name == self.current():  # before the lock, which this process may hold itself
            raise StoreError(f"{name} is the collection in use: it is not removed")
        lock = DirectoryLock(directory)
        lock.acquire()
        try:
            # Again: who switches to it has it open, so only from now on this cannot change.
            current, kept, _ = _pointer(self._path)
            if name == current:
                raise StoreError(f"{name} is the collection in use: it is not removed")
            if dry_run:
                return
            if name == kept:
                self._point(current, None)
            # First: cut off in the middle, what is left must not look like a collection.
            (directory / "fingerprint.json").unlink(missing_ok=True)
            shutil.rmtree(directory)
        except OSError as error:
            raise StoreError(f"cannot remove {directory} ({error.strerror}): remove it by hand") from error
        finally:
            lock.release()

    def _point(self, current: str, kept: str | None, *, rolled_back: bool = False) -> None:
        file = self._path.with_name(f"{self._path.name}.json")
        try:
            write_atomically(file, json.dumps({"current": current, "kept": kept, "rolled_back": rolled_back}))
        except OSError as error:
            raise StoreError(f"cannot write {file} ({error.strerror}): nothing was switched") from error
