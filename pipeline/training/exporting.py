"""A trained cross-encoder for the CPU engine, in int8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.collection import Say
from pipeline.inference.conversion import write
from pipeline.inference.torch_cross_encoder import open_cross_encoder
from pipeline.reranking import Scorer
from pipeline.training.measuring import Case
from pipeline.windows import passages_of

# Correlation of the engine's logits with torch's below which the order of candidates can no longer be trusted.
LEAST_AGREEMENT = 0.98
_COMPARED = 20
_COMPARED_CANDIDATES = 10


def to_engine(model: Path, folder: Path, name: str) -> None:
    """Writes a Hugging Face cross-encoder as a model folder of the engine; ``default_alpha`` is still 1.

    Raises:
        ConversionError: the engine cannot run it, or does not answer as PyTorch does.
    """
    loaded = open_cross_encoder(str(model), revision=None, device="cpu", max_length=None, batch_tokens=None, local=True)
    write(loaded.source(name), folder)


def agreement(torch_model: Scorer, engine: Scorer, cases: Sequence[Case], say: Say) -> dict[str, float]:
    """How far the two are apart on some pairs: {"pairs", "largest", "mean", "correlation"} of the logits."""
    rows = []
    for case in cases[:_COMPARED]:
        passages = passages_of(case.candidates[:_COMPARED_CANDIDATES])
        both = (one.score(case.query, passages) for one in (torch_model, engine))
        rows += [(a.raw, b.raw) for a, b in zip(*both, strict=True) if a is not None and b is not None]
    exact, quick = np.array(rows, dtype=np.float64).T
    apart = np.abs(exact - quick)
    found = {
        "pairs": len(rows),
        "largest": round(float(apart.max()), 5),
        "mean": round(float(apart.mean()), 5),
        "correlation": round(correlation(exact, quick), 5),
    }
    say(
        f"int8 against torch on {found['pairs']} pairs: correlation {found['correlation']:.4f}, logits apart by "
        f"{found['mean']:.4f} in the mean and {found['largest']:.4f} at most"
    )
    return found


def correlation(exact: NDArray[Any], quick: NDArray[Any]) -> float:
    """Of two models' logits for the same pairs."""
    if exact.std() > 0 and quick.std() > 0:
        return float(np.corrcoef(exact, quick)[0, 1])
    # Constant logits have no correlation; then being equal is all there is.
    return float(np.abs(exact - quick).max() < 1e-3)


def agrees(found: dict[str, float]) -> bool:
    """Whether the engine's model can stand for torch's."""
    return found["correlation"] >= LEAST_AGREEMENT
