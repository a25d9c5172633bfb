"""Rerank scores that were computed before: in memory, or in a file that survives the process."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from pipeline.types import RerankScore
from pipeline.windows import Passage

T = TypeVar("T")
log = logging.getLogger(__name__)

_SELECT = "SELECT key, raw, probability, first, last FROM scores WHERE key IN"


class ScoreCache:
    """At most ``limit`` scores, those used longest ago given up first. Safe to share between threads.

    A score is found under a hash of everything it depends on: reranker with model and revision, query, title and
    text. So it cannot be wrong after a change of model. ``path`` names a SQLite file, which several processes may
    share; None keeps the scores in memory. A cache that cannot be read or written is as good as empty: no query
    fails for it.
    """

    def __init__(self, path: Path | None = None, limit: int = 10_000) -> None:
        self.limit = limit
        self.hits = 0
        """Scores that were found."""
        self.misses = 0
        """Scores that were not."""
        self._path = path
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        self._said = False

    def get(self, reranker: str, query: str, passages: Iterable[Passage]) -> dict[Passage, RerankScore]:
        """The scores that are known; ``reranker`` is the name with model and revision."""
        keys = {_key(reranker, query, passage): passage for passage in passages}

        def look_up(database: sqlite3.Connection) -> dict[Passage, RerankScore]:
            marks = ",".join("?" * len(keys))
            rows = database.execute(f"{_SELECT} ({marks})", list(keys)).fetchall()
            now = time.time_ns()
            database.executemany("UPDATE scores SET used = ? WHERE key = ?", [(now, row[0]) for row in rows])
            return {
                keys[key]: RerankScore(raw, probability, None if first is None else (first, last))
                for key, raw, probability, first, last in rows
            }

        with self._lock:
            found = (self._try(look_up) if keys else None) or {}
            self.hits += len(found)
            self.misses += len(keys) - len(found)
        return found

    def put(self, reranker: str, query: str, scores: Mapping[Passage, RerankScore]) -> None:
        """Keeps these scores."""
        now = time.time_ns()
        rows = [
            (_key(reranker, query, passage), score.raw, score.probability, *(score.window or (None, None)), now)
            for passage, score in scores.items()
        ]

        def keep(database: sqlite3.Connection) -> None:
            database.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?, ?)", rows)
            (count,) = database.execute("SELECT count(*) FROM scores").fetchone()
            if count > self.limit:
                # A tenth at once, so that not every call has to make room.
                surplus = count - self.limit + self.limit // 10
                database.execute(
                    "DELETE FROM scores WHERE key IN (SELECT key FROM scores ORDER BY used LIMIT ?)", [surplus]
                )

        with self._lock:
            self._try(keep)

    def close(self) -> None:
        """Closes the file; closing twice is fine."""
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None

    def _try(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """Result of ``work`` in one transaction; None where the cache cannot be used."""
        try:
            database = self._open()
            with database:
                return work(database)
        except (sqlite3.OperationalError, OSError) as error:  # busy, no space, no permission: not the content's fault
            self._give_up(error)
        except sqlite3.DatabaseError as error:  # no database, or a damaged one; it is only a cache
            self._give_up(error)
            if self._path is not None:
                self._path.unlink(missing_ok=True)
        return None

    def _give_up(self, error: Exception) -> None:
        # Once: a cache that does not work is no reason for a line a query.
        log.log(logging.DEBUG if self._said else logging.WARNING, "score cache %s: %s", self._path or "", error)
        self._said = True
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
            database.execute(
                "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, raw REAL, probability REAL, first INTEGER, "
                "last INTEGER, used INTEGER) WITHOUT ROWID"
            )
            database.execute("CREATE INDEX IF NOT EXISTS by_use ON scores (used)")
        return self._database


def _key(reranker: str, query: str, passage: Passage) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in (reranker, query, passage.title, passage.text):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()
