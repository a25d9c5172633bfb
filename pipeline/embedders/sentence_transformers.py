"""Any embedding model that sentence-transformers can load, from a folder or the Hugging Face hub."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipeline.embedders.vectors import unit_rows
from pipeline.errors import EmbedderError
from pipeline.hub import ModelError, counting_tokenizer, identity, load_model, pick_device
from pipeline.text import well_formed

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_ORGANIZATION = "sentence-transformers"
# Names that models give to their prompts, for queries and for documents.
_PROMPT_NAMES = (("query", "search_query"), ("document", "passage", "corpus", "search_document"))
# For models without a limit of their own, such as static embeddings.
_NO_LIMIT = 1_000_000


class SentenceTransformersEmbedder:
    """Prompts for queries and documents, pooling and length are the model's own configuration.

    ``name`` is the model's name and what it was made of: the hub's commit, or for a folder the hash of its files
    (not its path, so that a moved folder needs no new index). Weights stay float32 on every device, so that a
    collection made on a GPU is searched on a CPU.

    Raises:
        EmbedderError: the model cannot be found, reached or opened; says what to do.
        SettingsError: there is no such device.
    """

    def __init__(self, model: str, *, device: str = "auto", revision: str | None = None, batch_size: int = 32) -> None:
        try:
            self._model = load_model(
                model,
                revision=revision,
                organization=_ORGANIZATION,
                instead="RAG_EMBEDDER=embedded",
                open_model=lambda name, local: _open(name, revision, device, local),
            )
            self.name = identity(model, revision, _ORGANIZATION) or f"{model}@{revision or 'main'}"
        except ModelError as error:
            raise EmbedderError(str(error)) from error
        self._batch_size = batch_size
        self._lock = threading.Lock()
        self.tokenizer = _tokenizer(self._model, model)
        self.max_tokens = int(self._model.max_seq_length or _NO_LIMIT)
        self.dimension = int(self._model.get_embedding_dimension() or self.embed_query("dimension").shape[0])

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
        encode = self._model.encode_query if query else self._model.encode_document
        prompt = _prompt(self._model, query=query)
        try:
            with self._lock:  # its tokenizer may not be used by two threads
                vectors = encode(
                    texts, prompt=prompt, batch_size=self._batch_size, show_progress_bar=False, convert_to_numpy=True
                )
        except RuntimeError as error:
            raise EmbedderError(f"{self.name} failed: {error}") from error
        return unit_rows(vectors, model=self.name)


def _open(name: str, revision: str | None, device: str, local: bool) -> SentenceTransformer:
    import torch
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(
        name,
        device=pick_device(device),
        revision=revision,
        local_files_only=local,
        model_kwargs={"dtype": torch.float32},
    )


def _prompt(model: SentenceTransformer, *, query: bool) -> str:
    """What the model's configuration puts before a query or a document.

    sentence-transformers 6 itself would look no further than "document", which it adds empty to every model, and so
    leave out the "passage: " of models that call it "passage". A default prompt holds where the model has no
    prompts for either side.
    """
    sides = [[model.prompts[name] for name in names if model.prompts.get(name)] for names in _PROMPT_NAMES]
    if not any(sides):
        return model.prompts.get(model.default_prompt_name or "") or ""
    return next(iter(sides[0] if query else sides[1]), "")


def _tokenizer(model: SentenceTransformer, name: str) -> Tokenizer:
    tokenizer = counting_tokenizer(model.tokenizer)
    if tokenizer is None:
        raise EmbedderError(
            f"{name} has no fast tokenizer, which cutting texts into chunks needs; choose a model with tokenizer.json"
        )
    return tokenizer
