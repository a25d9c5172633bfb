"""The cross-encoder that comes with the package, or one of the user's in the same format, on the CPU engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.inference.folder import ModelFolder
from pipeline.models import RERANKER
from pipeline.scoring import sigmoid
from pipeline.types import RerankScore, ScoreScale


class EmbeddedReranker:
    """A :class:`~pipeline.interfaces.Reranker` from a model folder; the weights are loaded at the first call.

    ``cache_dir`` keeps the compiled model between processes; None compiles anew in each.
    """

    scale: ScoreScale = "logit"

    def __init__(self, folder: Path | None = None, cache_dir: Path | None = None, name: str = "embedded") -> None:
        self._model = ModelFolder(folder or RERANKER, "cross-encoder", cache_dir)
        self.name = name
        self.model = self._model.name
        self.default_alpha = float(self._model.config["default_alpha"])

    def score(self, query: str, texts: Sequence[str]) -> list[RerankScore]:
        """One score a text, in input order: the model's logit, and its sigmoid in float64."""
        if not texts:
            return []
        return [RerankScore(logit, sigmoid(logit)) for logit in self._model.logits(query, texts).tolist()]
