"""The reranker that comes with the package: late interaction over token vectors, on the CPU engine.

Query and text are read apart, and each query token looks for the text token nearest to it (ColBERT: Khattab and
Zaharia, SIGIR 2020). So a text's token vectors do not depend on the query, and those of texts that were seen are kept.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipeline.errors import RerankerError
from pipeline.inference.folder import ModelFolder
from pipeline.models import EMBEDDER, LATE_INTERACTION
from pipeline.scoring import sigmoid
from pipeline.types import RerankScore, ScoreScale

_Vectors = NDArray[np.float16]


class LateInteractionReranker:
    """A :class:`~pipeline.interfaces.Reranker` from a model folder; the weights are loaded at the first call.

    ``cache_dir`` keeps the compiled model between processes; None compiles anew in each. ``memory_mb`` bounds the token
    vectors that are kept, some 25 to 50 KB for a text of 100 to 200 tokens.
    """

    scale: ScoreScale = "logit"

    def __init__(
        self, folder: Path | None = None, cache_dir: Path | None = None, *, name: str = "embedded", memory_mb: int = 256
    ) -> None:
        self._model = ModelFolder(folder or LATE_INTERACTION, "late-interaction", cache_dir, trunk=EMBEDDER)
        self.name = name
        self.model = self.identity = self._model.name
        self.max_tokens = self._model.max_tokens
        self.default_alpha = float(self._model.config["default_alpha"])
        self._scale, self._bias = float(self._model.config["scale"]), float(self._model.config["bias"])
        self._seen: LRUCache[str, _Vectors] = LRUCache(memory_mb * 1_000_000, getsizeof=lambda kept: kept.nbytes)
        self._lock = threading.Lock()

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own."""
        return self._model.tokenizer

    def load(self) -> None:
        """Loads the model now; the first call would do it otherwise."""
        self._model.load()

    def score(self, query: str, texts: Sequence[str]) -> list[RerankScore]:
        """One score a text, in input order: the logit that the similarity stands for, and its sigmoid in float64."""
        if not texts:
            return []
        distinct = list(dict.fromkeys(texts))  # where a text stands may change its last digits: a tie must be a tie
        try:
            ((asked, weights),) = self._model.token_vectors([query], query=True)
            found = self._vectors(distinct)
        except RuntimeError as error:  # OpenVINO's only exception: out of memory, mostly, or a damaged file
            raise RerankerError(f"{self.model} failed: {error}", provider=self.name, retryable=True) from error
        logits = self._scale * max_sim(asked, softplus(weights), found) + self._bias
        scores = {text: RerankScore(raw, sigmoid(raw)) for text, raw in zip(distinct, logits.tolist(), strict=True)}
        return [scores[text] for text in texts]

    def _vectors(self, texts: Sequence[str]) -> list[_Vectors]:
        """Token vectors of each text, computed where they are not known."""
        with self._lock:
            known = {text: vectors for text in texts if (vectors := self._seen.get(text)) is not None}
        fresh = [text for text in texts if text not in known]
        for text, (computed, _) in zip(fresh, self._model.token_vectors(fresh, query=False), strict=True):
            known[text] = computed.astype(np.float16)
        with self._lock:
            for text in fresh:
                if known[text].nbytes <= self._seen.maxsize:
                    self._seen[text] = known[text]
        return [known[text] for text in texts]


def max_sim(query: NDArray[np.float32], weights: NDArray[np.float32], texts: Sequence[_Vectors]) -> NDArray[np.float64]:
    """For each text the mean over the query's tokens, by their weights, of the largest cosine with one of its tokens.

    ``query`` has shape (tokens, dimension) and ``weights`` (tokens,), each text (its tokens, dimension); all vectors
    have length 1. The result has shape (len(texts),).
    """
    starts = np.cumsum([0, *(len(text) for text in texts[:-1])])
    cosines = np.concatenate(texts).astype(np.float32) @ query.T
    best = np.maximum.reduceat(cosines, starts, axis=0).astype(np.float64)
    averages: NDArray[np.float64] = best @ (weights.astype(np.float64) / weights.sum(dtype=np.float64))
    return averages


def softplus(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """log(1 + e^x): positive, and near x where x is large."""
    return np.logaddexp(np.float32(0), x)
