"""The cross-encoder that comes with the package, or one of the user's in the same format, on the CPU engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from pipeline.errors import RerankerError
from pipeline.inference.folder import ModelFolder
from pipeline.models import RERANKER
from pipeline.scoring import sigmoid
from pipeline.types import RerankScore, ScoreScale


class EmbeddedReranker:
    """A :class:`~pipeline.interfaces.Reranker` from a model folder; the weights are loaded at the first call.

    ``cache_dir`` keeps the compiled model between processes; None compiles anew in each.
    """

    scale: ScoreScale = "logit"

    def __init__(
        self, folder: Path | None = None, cache_dir: Path | None = None, name: str = "embedded-cross-encoder"
    ) -> None:
        self._model = ModelFolder(folder or RERANKER, "cross-encoder", cache_dir)
        self.name = name
        self.model = self.identity = self._model.name
        self.max_tokens = self._model.max_tokens
        self.default_alpha = float(self._model.config["default_alpha"])

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own."""
        return self._model.tokenizer

    def load(self) -> None:
        """Loads the model now; the first call would do it otherwise."""
        self._model.load()

    def score(self, query: str, texts: Sequence[str]) -> list[RerankScore]:
        """One score a text, in input order: the model's logit, and its sigmoid in float64."""
        if not texts:
            return []
        try:
            logits = self._model.logits(query, texts).tolist()
        except RuntimeError as error:  # OpenVINO's only exception: out of memory, mostly, or a damaged file
            raise RerankerError(f"{self.model} failed: {error}", provider=self.name, retryable=True) from error
        return [RerankScore(logit, sigmoid(logit)) for logit in logits]
