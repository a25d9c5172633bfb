"""Any embedding model that sentence-transformers can load, from a folder or the Hugging Face hub.

On a CPU it runs on the engine of the model that comes with the package, converted at first use; elsewhere, and where
that engine does not give its answers, under PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.embedders.vectors import unit_rows
from pipeline.errors import EmbedderError
from pipeline.hub import ModelError, identity, load_model
from pipeline.inference.choice import EngineChoice, open_model, runs_on
from pipeline.text import well_formed

if TYPE_CHECKING:
    from pipeline.inference.torch_embedder import TorchEmbedder

_ORGANIZATION = "sentence-transformers"


class SentenceTransformersEmbedder:
    """Prompts for queries and documents, pooling and length are the model's own configuration.

    ``name`` is the model's name and what it was made of: the hub's commit, or for a folder the hash of its files
    (not its path, so that a moved folder needs no new index). It is the same on every engine and device, whose vectors
    are close enough for one collection. ``engine`` and ``cache_dir``, where converted models are kept: see
    :func:`pipeline.inference.choice.open_model`.

    Raises:
        EmbedderError: the model cannot be found, reached or opened; says what to do.
        SettingsError: there is no such device.
    """

    def __init__(
        self,
        model: str,
        *,
        device: str = "auto",
        revision: str | None = None,
        batch_size: int = 32,
        engine: EngineChoice = "auto",
        cache_dir: Path | None = None,
    ) -> None:
        named = partial(identity, model, revision, _ORGANIZATION)
        try:
            self._model = open_model(
                "embedder",
                partial(_open_torch, model, revision, device, batch_size),
                identity=named,
                variant="",
                device=device,
                engine=engine,
                cache_dir=cache_dir,
            )
            self.name = named() or f"{model}@{revision or 'main'}"
        except ModelError as error:
            raise EmbedderError(str(error)) from error
        self.tokenizer = self._model.tokenizer
        self.max_tokens = self._model.max_tokens
        self.dimension = self._model.dimension
        self.runs_on = runs_on(self._model)
        """The engine in use: "OpenVINO" or "PyTorch"."""

    def __repr__(self) -> str:
        return f"SentenceTransformersEmbedder({self.name!r})"

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See :meth:`pipeline.interfaces.Embedder.embed_documents`."""
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        return self._embed([well_formed(text) for text in texts], query=False)

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """See :meth:`pipeline.interfaces.Embedder.embed_query`."""
        vector: NDArray[np.float32] = self._embed([well_formed(text)], query=True)[0]
        return vector

    def _embed(self, texts: list[str], *, query: bool) -> NDArray[np.float32]:
        try:
            vectors = self._model.embed(texts, query=query)
        except RuntimeError as error:
            raise EmbedderError(f"{self.name} failed: {error}") from error
        return unit_rows(vectors, model=self.name)


def _open_torch(model: str, revision: str | None, device: str, batch_size: int) -> TorchEmbedder:
    from pipeline.inference.torch_embedder import open_embedder

    return load_model(
        model,
        revision=revision,
        organization=_ORGANIZATION,
        instead="RAG_EMBEDDER=embedded",
        open_model=lambda name, local: open_embedder(
            name, revision=revision, device=device, batch_size=batch_size, local=local
        ),
    )
