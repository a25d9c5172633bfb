"""The embedder that comes with the package: multilingual-e5-small, cut to English and Chinese, on the CPU engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipeline.errors import EmbedderError
from pipeline.inference.folder import ModelFolder
from pipeline.inference.token_vectors import TokenVectors, in_int8
from pipeline.models import EMBEDDER, LATE_INTERACTION


class EmbeddedEmbedder:
    """An :class:`~pipeline.interfaces.Embedder` from a model folder; the weights are loaded at the first text.

    ``cache_dir`` keeps the compiled model between processes; None compiles anew in each. ``token_vectors`` gets what
    the late-interaction reranker will want of each query and, while there is room, of each document; as most layers are
    the same, that takes a sixth more time than the embeddings alone.
    """

    def __init__(
        self, folder: Path | None = None, cache_dir: Path | None = None, *, token_vectors: TokenVectors | None = None
    ) -> None:
        self._model = ModelFolder(folder or EMBEDDER, "embedder", cache_dir)
        self.name = self._model.name
        self.dimension = self._model.dimension
        self.max_tokens = self._model.max_tokens
        self._token_vectors = token_vectors
        self._with_tokens: ModelFolder | None = None
        if token_vectors is not None:
            self._with_tokens = ModelFolder(
                LATE_INTERACTION, "late-interaction", cache_dir, trunk=self._model.folder, whole_trunk=True
            )

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own."""
        return self._model.tokenizer

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of shape (len(texts), dimension), of length 1."""
        if texts and self._with_tokens is not None and self._token_vectors is not None and self._token_vectors.room():
            with _named_errors(self.name):
                vectors, tokens = self._with_tokens.both_vectors(texts, query=False)
            read = {text: in_int8(rows) for text, (rows, _) in zip(texts, tokens, strict=True)}
            self._token_vectors.put(self._with_tokens.name, read)
            return vectors
        with _named_errors(self.name):
            return self._model.embed(texts, query=False)

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """Vector of shape (dimension,), of length 1."""
        with _named_errors(self.name):
            if self._with_tokens is None or self._token_vectors is None:
                return _only(self._model.embed([text], query=True))
            self._with_tokens.load()
            vectors, (asked,) = self._with_tokens.both_vectors([text], query=True)
        self._token_vectors.put_query(self._with_tokens.name, text, asked)
        return _only(vectors)

    def forget_queries(self) -> None:
        """Forgets what was read of queries for the reranker, which then reads them itself."""
        if self._token_vectors is not None:
            self._token_vectors.forget_queries()

    def close(self) -> None:
        """Closes the file of token vectors; closing twice is fine."""
        if self._token_vectors is not None:
            self._token_vectors.close()


def _only(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    vector: NDArray[np.float32] = vectors[0]
    return vector


@contextmanager
def _named_errors(name: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # OpenVINO's only exception: out of memory, mostly, or a damaged file
        raise EmbedderError(f"{name} failed: {error}") from error


def embedded_tokenizer() -> Tokenizer:
    """Counts tokens for embedders whose own tokenizer is out of reach, such as an HTTP endpoint's."""
    return ModelFolder(EMBEDDER, "embedder").tokenizer
