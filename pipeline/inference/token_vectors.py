"""Token vectors of texts that were read, kept for the queries to come."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.byte_cache import ByteCache, digest
from pipeline.forking import begin_anew

Int8Vectors = NDArray[np.int8]
"""Shape (tokens, dimension); the largest component of each vector is 127 or -127."""
QueryVectors = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Of shape (tokens, dimension), each of length 1, and the tokens' weights, of shape (tokens,)."""

# Queries whose vectors wait for the reranker: more than are under way at once.
_QUERIES = 256
_DAY = 24 * 60 * 60.0
_shared: dict[tuple[Path | None, int], TokenVectors] = {}
_shared_lock = threading.Lock()


class TokenVectors:
    """By model and text, those used longest ago given up first. Safe to share between threads.

    ``megabytes`` bounds them, some 20 KB for a text of 150 tokens; ``path`` is that of
    :class:`~pipeline.byte_cache.ByteCache`.
    """

    def __init__(self, path: Path | None = None, megabytes: int = 256) -> None:
        self._path = path
        self._kept = ByteCache(path, megabytes * 1_000_000, "token vector", by_size=True)
        self._queries: dict[tuple[str, str], QueryVectors] = {}
        self._lock = threading.Lock()

    def get(self, model: str, texts: Sequence[str], dimension: int) -> dict[str, Int8Vectors]:
        """Those that are known; ``model`` is the name with the revision."""
        keys = {digest(model, text): text for text in texts}
        return {
            keys[key]: np.frombuffer(value, np.int8).reshape(-1, dimension)
            for key, value in self._kept.get(keys).items()
        }

    def put(self, model: str, vectors: Mapping[str, Int8Vectors]) -> None:
        """Keeps these."""
        self._kept.put({digest(model, text): rows.tobytes() for text, rows in vectors.items()})

    def query(self, model: str, text: str) -> QueryVectors | None:
        """Those of a query that was embedded a moment ago; None if it was not."""
        with self._lock:
            return self._queries.get((model, text))

    def put_query(self, model: str, text: str, vectors: QueryVectors) -> None:
        """Keeps those of a query, in memory, until some hundred others came."""
        with self._lock:
            self._queries.pop((model, text), None)  # so that it is the newest
            self._queries[model, text] = vectors
            if len(self._queries) > _QUERIES:
                del self._queries[next(iter(self._queries))]

    def forget_queries(self) -> None:
        """Forgets all queries' vectors; those of texts stay."""
        with self._lock:
            self._queries.clear()

    def tokens(self, model: str, texts: Sequence[str], dimension: int) -> list[int | None]:
        """How many vectors each text has; None for one that is not known."""
        keys = [digest(model, text) for text in texts]
        sizes = self._kept.sizes(keys)
        return [sizes[key] // dimension if key in sizes else None for key in keys]

    def room(self) -> bool:
        """Whether more can be kept without giving up what was kept or used in the last day."""
        recent = self._kept.weight(seconds=_DAY)
        return recent is not None and recent < 0.9 * self._kept.limit

    def close(self) -> None:
        """Closes the file; closing twice is fine, and what is asked later opens it again. Memory stays as it is."""
        if self._path is not None:
            self._kept.close()


def shared_token_vectors(path: Path | None, megabytes: int) -> TokenVectors:
    """The process's one for a file, or for its memory: what an ingest has read a query finds."""
    with _shared_lock:
        return _shared.setdefault((path and path.absolute(), megabytes), TokenVectors(path, megabytes))


def _forget_in_child() -> None:
    """After a fork those are the parent's, of which a thread may have held a lock."""
    global _shared_lock
    _shared_lock = threading.Lock()
    _shared.clear()


begin_anew(_forget_in_child)


def in_int8(vectors: NDArray[np.float32]) -> Int8Vectors:
    """Each vector's direction, in a quarter of the size."""
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    scaled: NDArray[np.float32] = vectors * (127 / np.maximum(largest, 1e-12))
    return np.rint(scaled).astype(np.int8)
