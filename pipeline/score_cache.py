"""Rerank scores that were computed before: in memory, or in a file that survives the process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.byte_cache import ByteCache, digest
from pipeline.types import RerankScore
from pipeline.windows import Passage


class ScoreCache:
    """At most ``limit`` scores, those used longest ago given up first. Safe to share between threads.

    A score is found under a hash of everything it depends on: reranker with model, revision and the settings that
    change its scores, query, title and text. So it cannot be wrong after a change of one of them. ``path`` is that of
    :class:`~pipeline.byte_cache.ByteCache`.
    """

    def __init__(self, path: Path | None = None, limit: int = 10_000) -> None:
        self.limit = limit
        self.hits = 0
        """Scores that were found."""
        self.misses = 0
        """Scores that were not."""
        self._cache = ByteCache(path, limit, "score")
        self._lock = threading.Lock()

    def get(self, reranker: str, query: str, passages: Iterable[Passage]) -> dict[Passage, RerankScore]:
        """The scores that are known; ``reranker`` says whose they are."""
        keys = {digest(reranker, query, passage.title, passage.text): passage for passage in passages}
        found = {keys[key]: _score(value) for key, value in self._cache.get(keys).items()}
        with self._lock:
            self.hits += len(found)
            self.misses += len(keys) - len(found)
        return found

    def put(self, reranker: str, query: str, scores: Mapping[Passage, RerankScore]) -> None:
        """Keeps these scores."""
        self._cache.put(
            {digest(reranker, query, passage.title, passage.text): _bytes(score) for passage, score in scores.items()}
        )

    def close(self) -> None:
        """Closes the file; closing twice is fine."""
        self._cache.close()


def _bytes(score: RerankScore) -> bytes:
    # Floats come back as they were; float() because a reranker may give NumPy's.
    return json.dumps([float(score.raw), float(score.probability), score.window]).encode()


def _score(value: bytes) -> RerankScore:
    raw, probability, window = json.loads(value)
    return RerankScore(raw, probability, None if window is None else (window[0], window[1]))
