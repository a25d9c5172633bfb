"""What embedders of other people's models do with their answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import EmbedderError


def unit_rows(vectors: Any, *, model: str) -> NDArray[np.float32]:
    """The rows as float32 of length 1.

    A row of zeros, as some models give for texts without a known word, has no direction; it becomes the vector of
    equal components, which is as far from everything as any.

    Raises:
        EmbedderError: a component is infinite or no number.
    """
    wide = np.asarray(vectors, dtype=np.float64)
    if not np.isfinite(wide).all():
        raise EmbedderError(f"{model} gave a vector with infinite or missing components; its weights may be damaged")
    # Scaled first: the squares of tiny components would be 0.
    peaks = np.abs(wide).max(axis=1, keepdims=True, initial=0.0)
    wide = np.where(peaks > 0, wide / np.where(peaks > 0, peaks, 1.0), 1.0)
    unit: NDArray[np.float32] = (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32)
    return unit
