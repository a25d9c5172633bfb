"""An embedding model under PyTorch, as sentence-transformers loads it, with the prompts of its own configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipeline import deadline
from pipeline.hub import ModelError, check_vocabulary, counting_tokenizer, pick_device
from pipeline.inference.conversion import ConversionError, Source, samples
from pipeline.inference.fair_queue import FairQueue

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# Names that models give to their prompts, for queries and for documents.
_PROMPT_NAMES = (("query", "search_query"), ("document", "passage", "corpus", "search_document"))
# For models without a limit of their own, such as static embeddings.
_NO_LIMIT = 1_000_000


def open_embedder(name: str, *, revision: str | None, device: str, batch_size: int, local: bool) -> TorchEmbedder:
    """Loads a folder or a hub's model; ``local`` forbids to download. Raises what its libraries raise.

    Weights stay float32 on every device, so that a collection made on a GPU is searched on a CPU.
    """
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        name,
        device=pick_device(device),
        revision=revision,
        local_files_only=local,
        model_kwargs={"dtype": torch.float32},
    )
    return TorchEmbedder(model, batch_size)


class TorchEmbedder:
    """A loaded model, one batch at a time: its own tokenizer may not be used by two threads.

    A query that comes while documents are embedded waits for the batch at work, not for all of them.
    """

    def __init__(self, model: SentenceTransformer, batch_size: int) -> None:
        self._model = model
        self._batch_size = batch_size
        self._turns = FairQueue([model])
        check_vocabulary(model.tokenizer)
        tokenizer = counting_tokenizer(model.tokenizer)
        if tokenizer is None:
            raise ModelError(
                "the model has no fast tokenizer, which cutting texts into chunks needs; choose one with tokenizer.json"
            )
        self.tokenizer: Tokenizer = tokenizer
        self.max_tokens = int(model.max_seq_length or _NO_LIMIT)
        self.dimension = int(model.get_embedding_dimension() or self.embed(["dimension"], query=True).shape[1])

    def embed(self, texts: Sequence[str], *, query: bool) -> NDArray[np.float32]:
        """One row a text, as the model gives it."""
        encode = self._model.encode_query if query else self._model.encode_document
        prompt = _prompt(self._model, query=query)
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))  # like lengths together
        rows: dict[int, NDArray[np.float32]] = {}
        for start in range(0, len(order), self._batch_size):
            deadline.check()
            batch = order[start : start + self._batch_size]
            model = self._turns.get()
            try:
                found = encode(
                    [texts[place] for place in batch],
                    prompt=prompt,
                    batch_size=self._batch_size,
                    show_progress_bar=False,
                    convert_to_numpy=True,
                )
            finally:
                self._turns.put(model)
            rows.update(zip(batch, found, strict=True))
        return np.stack([rows[place] for place in range(len(texts))])

    def source(self, name: str) -> Source:
        """What the CPU engine needs to take over.

        Raises:
            ConversionError: the model treats queries, documents or prompts in a way that one graph does not hold.
        """
        from sentence_transformers.base.modules import Router
        from sentence_transformers.sentence_transformer.modules import Pooling

        if self.max_tokens >= _NO_LIMIT:
            raise ConversionError("it does not say how long its input may be")
        if any(isinstance(module, Router) for module in self._model):
            raise ConversionError("it has different modules for queries and documents")
        if any(isinstance(module, Pooling) and not module.include_prompt for module in self._model):
            raise ConversionError("it leaves the prompt out of its pooling")
        vectors = np.concatenate([self.embed([text], query=side == "query") for side, text in samples("embedder")])
        features = self._model.preprocess(["a"])
        inputs = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in features]
        return Source(
            module=_vectors_of(self._model, inputs),
            inputs=inputs,
            tokenizer=self.tokenizer,
            config={
                "kind": "embedder",
                "name": name,
                "dimension": self.dimension,
                "max_tokens": self.max_tokens,
                "query_prefix": _prompt(self._model, query=True),
                "document_prefix": _prompt(self._model, query=False),
                "pad_id": self._model.tokenizer.pad_token_id,
            },
            answers=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        )


def _vectors_of(model: SentenceTransformer, inputs: Sequence[str]) -> Any:
    """The model with its vectors, of shape (texts, dimension), as the only output."""
    from torch.nn import Module

    class Vectors(Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
            values = (input_ids, attention_mask, token_type_ids)
            return self.model(dict(zip(inputs, values, strict=False)))["sentence_embedding"]

    return Vectors()


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
