"""The embedder that comes with the package: multilingual-e5-small, cut to English and Chinese, on the CPU engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipeline.errors import EmbedderError
from pipeline.inference.folder import ModelFolder
from pipeline.models import EMBEDDER


class EmbeddedEmbedder:
    """An :class:`~pipeline.interfaces.Embedder` from a model folder; the weights are loaded at the first text.

    ``cache_dir`` keeps the compiled model between processes; None compiles anew in each.
    """

    def __init__(self, folder: Path | None = None, cache_dir: Path | None = None) -> None:
        self._model = ModelFolder(folder or EMBEDDER, "embedder", cache_dir)
        self.name = self._model.name
        self.dimension = self._model.dimension
        self.max_tokens = self._model.max_tokens

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own."""
        return self._model.tokenizer

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of shape (len(texts), dimension), of length 1."""
        return self._embed(texts, query=False)

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """Vector of shape (dimension,), of length 1."""
        vector: NDArray[np.float32] = self._embed([text], query=True)[0]
        return vector

    def _embed(self, texts: Sequence[str], *, query: bool) -> NDArray[np.float32]:
        try:
            return self._model.embed(texts, query=query)
        except RuntimeError as error:  # OpenVINO's only exception: out of memory, mostly, or a damaged file
            raise EmbedderError(f"{self.name} failed: {error}") from error


def embedded_tokenizer() -> Tokenizer:
    """Counts tokens for embedders whose own tokenizer is out of reach, such as an HTTP endpoint's."""
    return ModelFolder(EMBEDDER, "embedder").tokenizer
