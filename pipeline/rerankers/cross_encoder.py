"""Any cross-encoder that sentence-transformers can load, from a folder or the Hugging Face hub."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from pipeline.errors import RerankerError
from pipeline.hub import ModelError, counting_tokenizer, cpu_has_bf16, identity, load_model, pick_device
from pipeline.inference.combining import Combiner
from pipeline.scoring import sigmoid
from pipeline.text import well_formed
from pipeline.types import RerankScore, ScoreScale

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

ORGANIZATION = "cross-encoder"
"""Whose model a name without an owner is."""

# Tokens of a batch, padding included. Small on CPUs: 8 passages at once run about twice as fast as 32, because
# activations stay in the cache and little is padded. On GPUs only memory counts.
_BATCH_TOKENS = {"cpu": 2048, "cuda": 65536, "mps": 16384}
# Most pairs that calls of several threads are joined to: the candidates of a few queries.
_TOGETHER = 256
# Tokenizers without a limit of their own give a number like 1e30.
_UNLIMITED = 1_000_000


class CrossEncoderReranker:
    """Reads query and text together and gives one logit; ``probability`` is its sigmoid in float64.

    The model is loaded at the first :meth:`score` and shared by all rerankers of the process that ask for the same
    one. A pair too long for it loses the end of its longer part, so neither a long query nor a long text is all that
    is left. ``revision`` is a commit, tag or branch on the hub; ``batch_tokens`` bounds the padded size of a batch.
    """

    scale: ScoreScale = "logit"
    default_alpha = 1.0

    def __init__(
        self,
        model: str,
        *,
        name: str = "cross-encoder",
        device: str = "auto",
        revision: str | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        self.name = name
        self.model = model
        self.revision = revision
        self._device = device
        self._max_length = max_length
        self._batch_tokens = batch_tokens
        self._identity: str | None = None
        self._identity_lock = threading.Lock()

    def __repr__(self) -> str:
        return f"CrossEncoderReranker({self.model!r}, name={self.name!r}, device={self._device!r})"

    @property
    def identity(self) -> str | None:
        """Model and revision: the commit of a model from the hub, the content of a folder; None until it is known."""
        with self._identity_lock:
            if self._identity is None:
                try:
                    self._identity = identity(self.model, self.revision, ORGANIZATION)
                except ModelError:  # scoring says what is wrong with it
                    return None
            return self._identity

    @property
    def max_tokens(self) -> int | None:
        """Longest pair of query and text, in tokens."""
        return self._loaded().max_tokens

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's own."""
        return self._loaded().tokenizer

    def _loaded(self) -> _Model:
        try:
            return _shared(self.model, self.revision, self._device, self._max_length)
        except ModelError as error:
            raise RerankerError(str(error), provider=self.name, operator=True) from error

    def score(self, query: str, texts: Sequence[str]) -> list[RerankScore]:
        """See :meth:`pipeline.interfaces.Reranker.score`. Equal texts are scored once."""
        if not texts:
            return []
        clean = [well_formed(text) for text in texts]
        unique = list(dict.fromkeys(clean))
        model = self._loaded()
        try:
            logits = dict(zip(unique, model.logits(well_formed(query), unique, self._batch_tokens), strict=True))
        except RuntimeError as error:
            # Out of memory, mostly: less load may heal it.
            raise RerankerError(f"{self.model} failed: {error}", provider=self.name, retryable=True) from error
        broken = [text for text, logit in logits.items() if not math.isfinite(logit)]
        if broken:
            raise RerankerError(
                f"{self.model} gave no number for {len(broken)} of {len(unique)} texts; its weights may be damaged",
                provider=self.name,
            )
        return [RerankScore(logits[text], sigmoid(logits[text])) for text in clean]


class _Model:
    """A loaded model, one forward pass at a time: its own tokenizer may not be used by two threads."""

    def __init__(self, model: CrossEncoder, device: str) -> None:
        self._model = model
        self._kind = device.partition(":")[0]
        self._together: Combiner[tuple[str, str, int], float] = Combiner(self._forward, _TOGETHER)
        self._bf16 = self._kind == "cpu" and cpu_has_bf16()
        if model.num_labels != 1:
            raise ModelError(
                f"the model has {model.num_labels} outputs, a reranker needs exactly one: this is a classifier, not a "
                "cross-encoder for reranking"
            )
        _remove_sigmoid(model)
        _keep_head_exact(model)

    def logits(self, query: str, texts: list[str], batch_tokens: int | None) -> list[float]:
        """One logit for each text, in input order; calls that other threads make meanwhile go along in one."""
        budget = batch_tokens or _BATCH_TOKENS.get(self._kind, 2048)
        return self._together.run([(query, text, budget) for text in texts])

    def _forward(self, items: list[tuple[str, str, int]]) -> list[float]:
        """Logits of (query, text, tokens of a batch).

        Batches hold pairs of like length, and the same ones whatever the order of the input: in bf16 a logit
        changes in the third digit with the shape of its batch.
        """
        from torch.nn import Identity

        distinct = list(dict.fromkeys(part for query, text, _ in items for part in (query, text)))
        count = dict(zip(distinct, map(len, self._ids(distinct)), strict=True))
        limit = self._model.max_seq_length or math.inf
        lengths = [int(min(count[query] + count[text], limit)) for query, text, _ in items]
        order = sorted(range(len(items)), key=lambda i: (-lengths[i], items[i]))
        logits = [math.nan] * len(items)
        for batch in _batches(order, lengths, min(budget for _, _, budget in items)):
            with self._autocast():
                # Asked for without activation: by default each model applies the one its configuration names.
                scores = self._model.predict(
                    [items[i][:2] for i in batch],
                    batch_size=len(batch),
                    activation_fn=Identity(),
                    show_progress_bar=False,
                )
            for i, score in zip(batch, scores.tolist(), strict=True):
                logits[i] = score
        return logits

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """A copy that counts whole texts; None for a tokenizer that only Python has."""
        return counting_tokenizer(self._model.tokenizer)

    @property
    def max_tokens(self) -> int | None:
        """Longest pair that the model reads, in tokens; None where it does not say."""
        length = self._model.max_seq_length
        return int(length) if length and length < _UNLIMITED else None

    def _ids(self, texts: list[str]) -> list[list[int]]:
        # verbose: else it warns of texts longer than the model, which are cut later.
        ids: list[list[int]] = self._model.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _autocast(self) -> AbstractContextManager[Any]:
        if not self._bf16:
            return nullcontext()
        import torch

        context: AbstractContextManager[Any] = torch.autocast("cpu", dtype=torch.bfloat16)
        return context


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


# One model a process, whatever the number of rerankers that use it.
_models: dict[tuple[str, str | None, str, int | None], _Model] = {}
_models_lock = threading.Lock()


def _shared(model: str, revision: str | None, device: str, max_length: int | None) -> _Model:
    folder = Path(model).expanduser()
    place = str(folder.resolve()) if folder.is_dir() else model
    key = (place, revision, device, max_length)
    with _models_lock:
        if key not in _models:
            _models[key] = load_model(
                place,
                revision=revision,
                organization=ORGANIZATION,
                instead="RAG_RERANKER=embedded",
                open_model=lambda name, local: _open(name, revision, device, max_length, local),
            )
        return _models[key]


def _open(name: str, revision: str | None, device: str, max_length: int | None, local: bool) -> _Model:
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
    return _Model(model, device)
