"""What was computed before, in a SQLite file that survives the process, or in memory."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

T = TypeVar("T")
log = logging.getLogger(__name__)

# Keys in one statement; SQLite allows 32,766.
_AT_ONCE = 10_000
# Bytes in one transaction, for which other threads and processes wait.
_PIECE = 1_000_000
# Seconds that a writer waits for other processes, and a reader for one that holds the whole file, which takes moments;
# and after which they look again.
_PATIENCE = 1.0
_MOMENT = 0.2
_PAUSE = 0.005
# Bytes before each value that tell a damaged one: a file system may give back anything.
_CHECK = 4
_WEIGHT = "SELECT total(weight) FROM kept WHERE used >= ?"


class ByteCache:
    """Byte strings by key, those used longest ago given up first. Safe to share between threads.

    ``limit`` is on their number, or with ``by_size`` on their bytes. ``path`` names a file, which several processes
    may share; None keeps all in memory. A cache that cannot be read or written is as good as empty, and so is a
    value that was damaged: nothing fails for it. ``what`` names it in the log.
    """

    def __init__(self, path: Path | None, limit: int, what: str, *, by_size: bool = False) -> None:
        self.limit = limit
        self._path = path
        self._what = what
        self._by_size = by_size
        # More than one at once, so that not every call has to make room; few, so that none takes long.
        self._surplus = min(limit // 10, 2 * _PIECE if by_size else 1000)
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        self._said = False
        with _caches_lock:
            _caches.add(self)

    def get(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """The values that are known."""
        wanted = list(keys)

        def look_up(database: sqlite3.Connection) -> dict[bytes, bytes]:
            now = time.time_ns()
            # As bytes, whatever a damaged row says that its value is.
            rows = _select(database, "key, CAST(value AS BLOB)", wanted)
            whole = {key: value[_CHECK:] for key, value in rows if value and value[:_CHECK] == _check(value[_CHECK:])}
            damaged = [(key,) for key, _ in rows if key not in whole]
            with contextlib.suppress(sqlite3.OperationalError):  # another process writes: what is found is found
                database.executemany("UPDATE kept SET used = ? WHERE key = ?", [(now, key) for key in whole])
                database.executemany("DELETE FROM kept WHERE key = ?", damaged)
            return whole

        return self._try(look_up) or {}

    def sizes(self, keys: Iterable[bytes]) -> dict[bytes, int]:
        """Bytes of the values that are known; nothing is read, and nothing counts as used."""
        wanted = list(keys)
        found = self._try(lambda database: _select(database, "key, length(value)", wanted)) or []
        return {key: size - _CHECK for key, size in found}

    def weight(self, seconds: float | None = None) -> int | None:
        """What counts towards the limit, or what of it was used in the last seconds; None if it cannot be known."""
        since = 0 if seconds is None else time.time_ns() - int(seconds * 1e9)
        found = self._try(lambda database: database.execute(_WEIGHT, (since,)).fetchone())
        return None if found is None else int(found[0])

    def put(self, values: Mapping[bytes, bytes]) -> None:
        """Keeps these values, but none that would take nearly all the room."""
        now = time.time_ns()
        room = self.limit - self._surplus
        fitting = {key: value for key, value in values.items() if self._weight(value) <= room}
        for piece in _pieces(fitting):
            rows = [(key, now, self._weight(value), _check(value) + value) for key, value in piece.items()]
            if not self._try(partial(self._keep, rows), _PATIENCE):
                break

    def close(self) -> None:
        """Closes the file; closing twice is fine."""
        with self._lock:
            self._close()

    def __del__(self) -> None:
        self._close()

    def _keep(self, rows: Sequence[tuple[bytes, int, int, bytes]], database: sqlite3.Connection) -> bool:
        database.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?)", rows)
        (total,) = database.execute(_WEIGHT, (0,)).fetchone()
        if total > self.limit:
            # Where the limit was lowered, bit by bit: others wait for this.
            most = 2 * self._surplus + sum(weight for _, _, weight, _ in rows)
            too_much = min(total - self.limit + self._surplus, most)
            database.executemany("DELETE FROM kept WHERE key = ?", list(_oldest(database, too_much)))
        return True

    def _weight(self, value: bytes) -> int:
        return len(value) if self._by_size else 1

    def _try(self, work: Callable[[sqlite3.Connection], T], patience: float = _MOMENT) -> T | None:
        """Result of ``work`` in one transaction; None where the cache cannot be used.

        Another process that writes is waited for so many seconds, while other threads use the cache.
        """
        until = time.monotonic() + patience
        while True:
            with self._lock:
                try:
                    database = self._open()
                    with database:
                        return work(database)
                except (sqlite3.OperationalError, OSError) as error:  # busy, no space, no permission: not the content
                    if not _busy(error) or time.monotonic() >= until:
                        self._give_up(error)
                        return None
                except sqlite3.DatabaseError as error:  # no database, or a damaged one; it is only a cache
                    self._give_up(error)
                    if self._path is not None:
                        for name in (self._path, f"{self._path}-wal", f"{self._path}-shm"):
                            with contextlib.suppress(OSError):
                                Path(name).unlink()
                    return None
            time.sleep(_PAUSE)

    def _give_up(self, error: Exception) -> None:
        # Once: a cache that does not work is no reason for a line a query.
        level = logging.DEBUG if self._said else logging.WARNING
        log.log(level, "%s cache %s: %s", self._what, self._path or "", error)
        self._said = True
        self._close()

    def _close(self) -> None:
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
            self._database = None

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(self._path or ":memory:", timeout=0, check_same_thread=False)
            try:
                # After a power cut the last entries may be missing, and no file is damaged.
                database.execute("PRAGMA journal_mode=WAL")
                database.execute("PRAGMA synchronous=NORMAL")
                # The value last: marking a row as used then rewrites no more than its beginning.
                database.execute(
                    "CREATE TABLE IF NOT EXISTS kept (key BLOB PRIMARY KEY, used INTEGER, weight INTEGER, value BLOB)"
                )
                database.execute("CREATE INDEX IF NOT EXISTS by_use ON kept (used, weight)")
            except sqlite3.Error:
                database.close()
                raise
            self._database = database
        return self._database


# All of the process, so that none is in use while it is forked.
_caches: WeakSet[ByteCache] = WeakSet()
_caches_lock = threading.Lock()
_waiting: list[ByteCache] = []


def _close_before_fork() -> None:
    """Waits until no cache is in use, and closes the files, which their next use opens again.

    SQLite's locks belong to the process, but its notes of them go to the child as well: a child that opens a file that
    is open here would believe that it holds the locks, too. And it must not even close what it inherits.
    """
    _caches_lock.acquire()
    _waiting.extend(_caches)
    for cache in _waiting:
        cache._lock.acquire()
        if cache._path is not None:
            cache._close()


def _go_on_after_fork() -> None:
    """In both processes."""
    for cache in _waiting:
        cache._lock.release()
    _waiting.clear()
    _caches_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_close_before_fork, after_in_parent=_go_on_after_fork, after_in_child=_go_on_after_fork)


def _busy(error: Exception) -> bool:
    """Whether another process holds the file, or what would be written of it."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def digest(*parts: str) -> bytes:
    """A key of 16 bytes for texts; where one ends and the next begins counts."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        found.update(len(data).to_bytes(8, "little") + data)
    return found.digest()


def _select(database: sqlite3.Connection, columns: str, keys: list[bytes]) -> list[Any]:
    rows: list[Any] = []
    for start in range(0, len(keys), _AT_ONCE):
        part = keys[start : start + _AT_ONCE]
        marks = ",".join("?" * len(part))
        rows += database.execute(f"SELECT {columns} FROM kept WHERE key IN ({marks})", part).fetchall()
    return rows


def _pieces(values: Mapping[bytes, bytes]) -> Iterator[dict[bytes, bytes]]:
    """The values in parts of about the bytes that go into one transaction."""
    piece: dict[bytes, bytes] = {}
    size = 0
    for key, value in values.items():
        if size > _PIECE:
            yield piece
            piece, size = {}, 0
        piece[key] = value
        size += len(value)
    if piece:
        yield piece


def _oldest(database: sqlite3.Connection, weight: int) -> Iterator[tuple[bytes]]:
    """The keys used longest ago that come to this weight together."""
    for key, its in database.execute("SELECT key, weight FROM kept ORDER BY used, rowid"):
        if weight <= 0:
            break
        weight -= its
        yield (key,)


def _check(value: bytes) -> bytes:
    return zlib.crc32(value).to_bytes(_CHECK, "little")
