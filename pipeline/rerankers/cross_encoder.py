"""Any cross-encoder that sentence-transformers can load, from a folder or the Hugging Face hub.

On a CPU it runs on the engine of the model that comes with the package, converted at first use; elsewhere, and where
that engine does not give its answers, under PyTorch.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from pipeline.errors import RerankerError
from pipeline.hub import ModelError, identity, load_model
from pipeline.inference.choice import EngineChoice, open_model, runs_on
from pipeline.inference.shared import Shared
from pipeline.scoring import sigmoid
from pipeline.text import well_formed
from pipeline.types import RerankScore, ScoreScale

if TYPE_CHECKING:
    from pipeline.inference.folder import ModelFolder
    from pipeline.inference.torch_cross_encoder import TorchCrossEncoder

ORGANIZATION = "cross-encoder"
"""Whose model a name without an owner is."""


class CrossEncoderReranker:
    """Reads query and text together and gives one logit; ``probability`` is its sigmoid in float64.

    The model is loaded at the first :meth:`score` and shared by all rerankers of the process that ask for the same
    one. A pair too long for it loses the end of its longer part, so neither a long query nor a long text is all that
    is left. ``revision`` is a commit, tag or branch on the hub; ``batch_tokens`` bounds the padded size of a batch of
    PyTorch's. ``engine``, and ``cache_dir`` for converted models: see :func:`pipeline.inference.choice.open_model`.
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
        engine: EngineChoice = "auto",
        cache_dir: Path | None = None,
    ) -> None:
        self.name = name
        self.model = model
        self.revision = revision
        self.variant = f"of {max_length or 'all'} tokens, engine {engine} on {device}"
        # A folder by its full path, so that all who use it share one model.
        folder = Path(model).expanduser()
        self._asked = _Asked(
            place=str(folder.resolve()) if folder.is_dir() else model,
            revision=revision,
            device=device,
            max_length=max_length,
            batch_tokens=batch_tokens,
            engine=engine,
            cache_dir=cache_dir.resolve() if cache_dir else None,
        )
        self._identity: str | None = None
        self._identity_lock = threading.Lock()

    def __repr__(self) -> str:
        return f"CrossEncoderReranker({self.model!r}, name={self.name!r}, device={self._asked.device!r})"

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

    def load(self) -> None:
        """Loads the model now; the first call would do it otherwise."""
        self._loaded().load()

    @property
    def runs_on(self) -> str:
        """The engine in use: "OpenVINO" or "PyTorch"."""
        return runs_on(self._loaded())

    def _loaded(self) -> ModelFolder | TorchCrossEncoder:
        try:
            return _shared(self._asked)
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
            found = model.logits(well_formed(query), unique)
        except RuntimeError as error:
            # Out of memory, mostly: less load may heal it.
            raise RerankerError(f"{self.model} failed: {error}", provider=self.name, retryable=True) from error
        broken = int((~np.isfinite(found)).sum())
        if broken:
            raise RerankerError(
                f"{self.model} gave no number for {broken} of {len(unique)} texts; its weights may be damaged",
                provider=self.name,
            )
        logits = dict(zip(unique, found.tolist(), strict=True))
        return [RerankScore(logits[text], sigmoid(logits[text])) for text in clean]


@dataclass(frozen=True)
class _Asked:
    """All that makes one loaded model another one."""

    place: str
    revision: str | None
    device: str
    max_length: int | None
    batch_tokens: int | None
    engine: EngineChoice
    cache_dir: Path | None


# One model a process, whatever the number of rerankers that use it.
_models: Shared[_Asked, ModelFolder | TorchCrossEncoder] = Shared()


def _shared(asked: _Asked) -> ModelFolder | TorchCrossEncoder:
    return _models.get(
        asked,
        lambda: open_model(
            "cross-encoder",
            partial(_open_torch, asked),
            identity=partial(identity, asked.place, asked.revision, ORGANIZATION),
            variant=str(asked.max_length or ""),
            device=asked.device,
            engine=asked.engine,
            cache_dir=asked.cache_dir,
        ),
    )


def _open_torch(asked: _Asked) -> TorchCrossEncoder:
    from pipeline.inference.torch_cross_encoder import open_cross_encoder

    return load_model(
        asked.place,
        revision=asked.revision,
        organization=ORGANIZATION,
        instead="RAG_RERANKER=embedded",
        open_model=lambda name, local: open_cross_encoder(
            name,
            revision=asked.revision,
            device=asked.device,
            max_length=asked.max_length,
            batch_tokens=asked.batch_tokens,
            local=local,
        ),
    )
