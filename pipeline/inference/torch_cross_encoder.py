"""A cross-encoder under PyTorch, as sentence-transformers loads it: batches of like length, logits, no activation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipeline.hub import ModelError, check_vocabulary, counting_tokenizer, cpu_has_bf16, pick_device
from pipeline.inference.combining import Combiner
from pipeline.inference.conversion import ConversionError, Source, samples
from pipeline.inference.first_token import first_token_scores

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

# Tokens of a batch, padding included. Small on CPUs: 8 passages at once run about twice as fast as 32, because
# activations stay in the cache and little is padded. On GPUs only memory counts.
_BATCH_TOKENS = {"cpu": 2048, "cuda": 65536, "mps": 16384}
# Most pairs that calls of several threads are joined to: the candidates of a few queries.
_TOGETHER = 256
# Tokenizers without a limit of their own give a number like 1e30.
_UNLIMITED = 1_000_000


def open_cross_encoder(
    name: str, *, revision: str | None, device: str, max_length: int | None, batch_tokens: int | None, local: bool
) -> TorchCrossEncoder:
    """Loads a folder or a hub's model; ``local`` forbids to download. Raises what its libraries raise."""
    import torch
    from sentence_transformers import CrossEncoder

    device = pick_device(device)
    dtype = torch.float32
    if device.startswith("cuda"):
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    model = CrossEncoder(
        name,
        device=device,
        revision=revision,
        max_length=max_length,
        local_files_only=local,
        model_kwargs={"dtype": dtype},
    )
    return TorchCrossEncoder(model, device, batch_tokens)


class TorchCrossEncoder:
    """A loaded model, one forward pass at a time: its own tokenizer may not be used by two threads."""

    def __init__(self, model: CrossEncoder, device: str, batch_tokens: int | None = None) -> None:
        self._model = model
        kind = device.partition(":")[0]
        self._budget = batch_tokens or _BATCH_TOKENS.get(kind, 2048)
        self._together: Combiner[tuple[str, str], float] = Combiner(self._forward, _TOGETHER)
        self._bf16 = kind == "cpu" and cpu_has_bf16()
        if model.num_labels != 1:
            raise ModelError(
                f"the model has {model.num_labels} outputs, a reranker needs exactly one: this is a classifier, not a "
                "cross-encoder for reranking"
            )
        check_vocabulary(model.tokenizer)
        model.eval()
        _remove_sigmoid(model)
        _keep_head_exact(model)

    def load(self) -> None:
        """Nothing is left to load."""

    def logits(self, query: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """One logit for each text, in input order; calls that other threads make meanwhile go along in one."""
        return np.asarray(self._together.run([(query, text) for text in texts]), dtype=np.float32)

    def _forward(self, pairs: list[tuple[str, str]]) -> list[float]:
        """Logits of (query, text).

        Batches hold pairs of like length, and the same ones whatever the order of the input: in bf16 a logit
        changes in the third digit with the shape of its batch.
        """
        features = self._features(pairs)
        seen = features["attention_mask"]
        lengths = seen.sum(1).tolist()
        order = sorted(range(len(pairs)), key=lambda i: (-lengths[i], pairs[i]))
        logits = [math.nan] * len(pairs)
        for batch in _batches(order, lengths, self._budget):
            # Cut to what the longest of the batch needs, on whichever side the model pads.
            columns = seen[batch].any(0)
            part = {
                name: value[batch][:, columns] if getattr(value, "shape", None) == seen.shape else value
                for name, value in features.items()
            }
            with self._autocast():
                scores = self._scores(part)
            for i, score in zip(batch, scores.tolist(), strict=True):
                logits[i] = score
        return logits

    def _features(self, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """What the model reads, padded; with the prompt that it names for all it reads, if any."""
        features: dict[str, Any] = self._model.preprocess(pairs, prompt=self._prompt)
        return features

    @property
    def _prompt(self) -> str | None:
        prompt: str | None = self._model.prompts.get(self._model.default_prompt_name)
        return prompt

    def _scores(self, features: dict[str, Any]) -> NDArray[np.float32]:
        """One logit for each text, without the activation that a model's configuration may name."""
        import torch
        from sentence_transformers.util import batch_to_device

        with torch.inference_mode():
            found = self._model(batch_to_device(features, self._model.device))["scores"]
        scores: NDArray[np.float32] = found.float().reshape(-1).cpu().numpy()
        return scores

    def source(self, name: str) -> Source:
        """What the CPU engine needs to take over.

        Raises:
            ConversionError: the tokenizer is one that only Python has, or the model reads no token ids, or a prompt.
        """
        if self.tokenizer is None:
            raise ConversionError("it has no fast tokenizer (tokenizer.json)")
        if self.max_tokens is None:
            raise ConversionError("it does not say how long its input may be")
        if self._prompt:
            raise ConversionError("it puts a prompt before what it reads")
        features = self._features([("a", "b")])
        inputs = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in features]
        return Source(
            module=_scores_of(self._model, inputs),
            inputs=inputs,
            tokenizer=self.tokenizer,
            config={
                "kind": "cross-encoder",
                "name": name,
                "max_tokens": self.max_tokens,
                "pad_id": self._model.tokenizer.pad_token_id,
                "default_alpha": 1.0,
            },
            answers=np.stack([self._scores(self._features([pair])) for pair in samples("cross-encoder")]),
        )

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """A copy that counts whole texts; None for a tokenizer that only Python has."""
        return counting_tokenizer(self._model.tokenizer)

    @property
    def max_tokens(self) -> int | None:
        """Longest pair that the model reads, in tokens; None where it does not say."""
        length = self._model.max_seq_length
        return int(length) if length and length < _UNLIMITED else None

    def _autocast(self) -> AbstractContextManager[Any]:
        if not self._bf16:
            return nullcontext()
        import torch

        context: AbstractContextManager[Any] = torch.autocast("cpu", dtype=torch.bfloat16)
        return context


def _scores_of(model: CrossEncoder, inputs: Sequence[str]) -> Any:
    """The model with its scores, of shape (texts, 1), as the only output."""
    from torch.nn import Module

    if len(list(model.children())) == 1 and model.transformers_model is not None:
        quick = first_token_scores(model.transformers_model)
        if quick is not None:
            return quick

    class Scores(Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
            values = (input_ids, attention_mask, token_type_ids)
            scores = self.model(dict(zip(inputs, values, strict=False)))["scores"]
            return scores.reshape(-1, 1)

    return Scores()


def _batches(order: list[int], lengths: list[int], budget: int) -> Iterator[list[int]]:
    """Cuts the order, longest first, into batches whose padded size (longest times count) fits the budget."""
    start = 0
    while start < len(order):
        size = max(1, budget // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def _remove_sigmoid(model: CrossEncoder) -> None:
    """Takes a sigmoid out of the model's own modules: ours would be the second one."""
    from sentence_transformers.base.modules import Dense
    from torch.nn import Identity, Sigmoid

    for module in model.modules():
        if isinstance(module, Dense) and isinstance(module.activation_function, Sigmoid):
            module.activation_function = Identity()


def _keep_head_exact(model: CrossEncoder) -> None:
    """Computes the last layer in float32: a logit rounded to bf16 has 8 bits, and candidates tie."""
    from torch.nn import Linear

    heads = [name for name, module in model.named_modules() if type(module) is Linear and module.out_features == 1]
    if heads:
        model.set_keep_in_fp32_modules([*(model.keep_in_fp32_modules or []), heads[-1]])
