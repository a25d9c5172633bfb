"""What was computed before, in a SQLite file that survives the process, or in memory."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)

# Keys in one statement; SQLite allows 32,766.
_AT_ONCE = 10_000
_WEIGHT = "SELECT total(weight) FROM kept"


class ByteCache:
    """Byte strings by key, those used longest ago given up first. Safe to share between threads.

    ``limit`` is on their number, or with ``by_size`` on their bytes. ``path`` names a file, which several processes
    may share; None keeps all in memory. A cache that cannot be read or written is as good as empty: nothing fails for
    it. ``what`` names it in the log.
    """

    def __init__(self, path: Path | None, limit: int, what: str, *, by_size: bool = False) -> None:
        self.limit = limit
        self._path = path
        self._what = what
        self._by_size = by_size
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        self._said = False

    def get(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """The values that are known."""
        wanted = list(keys)

        def look_up(database: sqlite3.Connection) -> dict[bytes, bytes]:
            rows = _select(database, "key, value", wanted)
            now = time.time_ns()
            database.executemany("UPDATE kept SET used = ? WHERE key = ?", [(now, key) for key, _ in rows])
            return dict(rows)

        return self._try(look_up) or {}

    def known(self, keys: Iterable[bytes]) -> set[bytes]:
        """Those keys that have a value; nothing is read, and nothing counts as used."""
        wanted = list(keys)
        return {key for (key,) in self._try(lambda database: _select(database, "key", wanted)) or []}

    def weight(self) -> int:
        """What counts towards the limit."""
        (total,) = self._try(lambda database: database.execute(_WEIGHT).fetchone()) or (0,)
        return int(total)

    def put(self, values: Mapping[bytes, bytes]) -> None:
        """Keeps these values, but none that would take nearly all the room."""
        now = time.time_ns()
        room = self.limit - self.limit // 10
        rows = [(key, now, weight, value) for key, value in values.items() if (weight := self._weight(value)) <= room]

        def keep(database: sqlite3.Connection) -> None:
            database.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?)", rows)
            (total,) = database.execute(_WEIGHT).fetchone()
            if total > self.limit:
                # A tenth at once, so that not every call has to make room.
                newer = "SELECT key, sum(weight) OVER (ORDER BY used DESC, rowid DESC) AS newer FROM kept"
                database.execute(f"DELETE FROM kept WHERE key IN (SELECT key FROM ({newer}) WHERE newer > ?)", [room])

        if rows:
            self._try(keep)

    def close(self) -> None:
        """Closes the file; closing twice is fine."""
        with self._lock:
            self._close()

    def _weight(self, value: bytes) -> int:
        return len(value) if self._by_size else 1

    def _try(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """Result of ``work`` in one transaction; None where the cache cannot be used."""
        with self._lock:
            try:
                database = self._open()
                with database:
                    return work(database)
            except (sqlite3.OperationalError, OSError) as error:  # busy, no space, no permission: not the content
                self._give_up(error)
            except sqlite3.DatabaseError as error:  # no database, or a damaged one; it is only a cache
                self._give_up(error)
                if self._path is not None:
                    self._path.unlink(missing_ok=True)
            return None

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
            database = self._database = sqlite3.connect(self._path or ":memory:", timeout=0.2, check_same_thread=False)
            # A cache that loses its last entries in a power cut is still right, so nothing waits for the disk.
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=OFF")
            # The value last: marking a row as used then rewrites no more than its beginning.
            database.execute(
                "CREATE TABLE IF NOT EXISTS kept (key BLOB PRIMARY KEY, used INTEGER, weight INTEGER, value BLOB)"
            )
            database.execute("CREATE INDEX IF NOT EXISTS by_use ON kept (used, weight)")
        return self._database


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
