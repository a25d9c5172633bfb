"""The reranker that comes with the package: late interaction over token vectors, on the CPU engine.

Query and text are read apart, and each query token looks for the text token nearest to it (ColBERT: Khattab and
Zaharia, SIGIR 2020). So a text's token vectors do not depend on the query, and those of texts that were seen are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipeline.errors import RerankerError
from pipeline.inference.folder import ModelFolder
from pipeline.inference.token_vectors import Int8Vectors, TokenVectors, in_int8
from pipeline.models import EMBEDDER, LATE_INTERACTION
from pipeline.models.upper_layers import DIMENSION
from pipeline.scoring import sigmoid
from pipeline.types import RerankScore, ScoreScale


class LateInteractionReranker:
    """A :class:`~pipeline.interfaces.Reranker` from a model folder; the weights are loaded at the first call.

    ``cache_dir`` keeps the compiled model between processes; None compiles anew in each. What was read is kept in
    ``token_vectors``, by default in memory. ``early`` is False where the embedder reads queries and documents for it,
    too, so that its own weights may never be needed. With ``with_embedder`` it reads by the graph that the embedder
    has: another one rounds otherwise, and a text's score would depend on who has read it.
    """

    scale: ScoreScale = "logit"
    apart = True

    def __init__(
        self,
        folder: Path | None = None,
        cache_dir: Path | None = None,
        *,
        name: str = "embedded",
        token_vectors: TokenVectors | None = None,
        early: bool = True,
        with_embedder: bool = False,
    ) -> None:
        self._model = ModelFolder(
            folder or LATE_INTERACTION, "late-interaction", cache_dir, trunk=EMBEDDER, whole_trunk=with_embedder
        )
        self.name = name
        self.model = self.identity = self._model.name
        self.max_tokens = self._model.max_tokens
        self.default_alpha = float(self._model.config["default_alpha"])
        self._scale, self._bias = float(self._model.config["scale"]), float(self._model.config["bias"])
        self._kept = token_vectors or TokenVectors()
        self._early = early

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own."""
        return self._model.tokenizer

    def load(self) -> None:
        """Loads the model now if it is sure to be used; the first call that needs it would do it otherwise."""
        if self._early:
            self._model.load()

    def score(self, query: str, texts: Sequence[str]) -> list[RerankScore]:
        """One score a text, in input order: the logit that the similarity stands for, and its sigmoid in float64."""
        if not texts:
            return []
        distinct = list(dict.fromkeys(texts))  # where a text stands may change its last digits: a tie must be a tie
        try:
            known = self._kept.query(self.identity, query)
            asked, weights = known or self._model.token_vectors([query], query=True)[0]
            found = self._vectors(distinct)
        except RuntimeError as error:  # OpenVINO's only exception: out of memory, mostly, or a damaged file
            raise RerankerError(f"{self.model} failed: {error}", provider=self.name, retryable=True) from error
        logits = self._scale * max_sim(asked, softplus(weights), found) + self._bias
        scores = {text: RerankScore(raw, sigmoid(raw)) for text, raw in zip(distinct, logits.tolist(), strict=True)}
        return [scores[text] for text in texts]

    def tokens_read(self, texts: Sequence[str]) -> list[int | None]:
        """Tokens of each text that was read, special ones included; reading is nearly all that scoring one takes."""
        return self._kept.tokens(self.identity, texts, DIMENSION)

    def close(self) -> None:
        """Closes the file of token vectors; closing twice is fine."""
        self._kept.close()

    def _vectors(self, texts: Sequence[str]) -> list[Int8Vectors]:
        """Token vectors of each text, computed where they are not known."""
        known = self._kept.get(self.identity, texts, DIMENSION)
        fresh = [text for text in texts if text not in known]
        computed = self._model.token_vectors(fresh, query=False) if fresh else []
        read = {text: in_int8(vectors) for text, (vectors, _) in zip(fresh, computed, strict=True)}
        self._kept.put(self.identity, read)
        known |= read
        return [known[text] for text in texts]


def max_sim(
    query: NDArray[np.float32], weights: NDArray[np.float32], texts: Sequence[Int8Vectors]
) -> NDArray[np.float64]:
    """For each text the mean over the query's tokens, by their weights, of the largest cosine with one of its tokens.

    ``query`` has shape (tokens, dimension), its rows length 1, and ``weights`` (tokens,); each text has shape (its
    tokens, dimension). The result has shape (len(texts),).
    """
    shares = weights.astype(np.float64) / weights.sum(dtype=np.float64)
    averages = np.empty(len(texts))
    for i, text in enumerate(texts):  # one at a time: its cosines then stay in the cache
        vectors = text.astype(np.float32)
        lengths = np.sqrt(np.einsum("td,td->t", vectors, vectors))
        cosines = (vectors @ query.T) / np.maximum(lengths, 1e-12)[:, np.newaxis]
        averages[i] = cosines.max(axis=0).astype(np.float64) @ shares
    return averages


def softplus(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """log(1 + e^x): positive, and near x where x is large."""
    return np.logaddexp(np.float32(0), x)
