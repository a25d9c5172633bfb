"""Parts of a pipeline that remember their answers to the current query, with what the first call took.

Runs that share a stage then share its work and its candidates, and each still goes through the real pipeline; the
latency of a run is made from the remembered times and from what the pipeline itself took around the parts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pipeline.interfaces import Embedder, Reranker, Store
from pipeline.types import Candidate, HybridFusion, RerankScore, SearchMode
from pipeline.where import Where

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")


class _Memo:
    def __init__(self) -> None:
        self.ms = 0.0
        """Time of the calls since it was set to 0; a remembered call counts with what it took at first."""
        self.spent_ms = 0.0
        """What they really took: next to nothing for a remembered call."""
        self._kept: dict[Hashable, tuple[Any, float]] = {}

    def call(self, key: Hashable, compute: Callable[[], T]) -> T:
        start = time.perf_counter()
        if key not in self._kept:
            value = compute()
            self._kept[key] = (value, (time.perf_counter() - start) * 1e3)
        value, took = self._kept[key]
        self.ms += took
        self.spent_ms += (time.perf_counter() - start) * 1e3
        return cast(T, value)

    def forget(self) -> None:
        self._kept.clear()


class RememberedEmbedder(_Memo):
    """An embedder whose query vectors are remembered."""

    def __init__(self, inner: Embedder) -> None:
        super().__init__()
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """The vector, embedded once."""
        return self.call(text, lambda: self._inner.embed_query(text))


class RememberedStore(_Memo):
    """A store whose searches are remembered."""

    def __init__(self, inner: Store) -> None:
        super().__init__()
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def search(
        self,
        text: str,
        vector: NDArray[np.float32] | None,
        *,
        limit: int,
        mode: SearchMode = "hybrid",
        fusion: HybridFusion = "convex",
        where: Where | None = None,
        exact: bool = False,
    ) -> list[Candidate]:
        """The candidates, searched once for each mode, fusion and limit: a shorter search is not a prefix of a longer
        one where lists are fused."""
        return self.call(
            (text, limit, mode, fusion, repr(where), exact),
            lambda: self._inner.search(text, vector, limit=limit, mode=mode, fusion=fusion, where=where, exact=exact),
        )


class RememberedReranker(_Memo):
    """A reranker whose scores are remembered."""

    def __init__(self, inner: Reranker) -> None:
        super().__init__()
        self._inner = inner
        self.texts: list[str] = []
        """Those of the last call, remembered or not, since it was emptied."""
        self.embedded = True
        """Whether the query is embedded before: an embedder may read it for the reranker, whose scores then take less
        time, so what they took without that is remembered apart."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def score(self, query: str, texts: Sequence[str]) -> list[RerankScore]:
        """The scores, computed once for the same texts, and once more where the query is not embedded."""
        self.texts = list(texts)
        return self.call((self.embedded, query, tuple(texts)), lambda: self._inner.score(query, texts))
