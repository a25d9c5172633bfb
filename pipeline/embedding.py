"""Texts to vectors by whatever embedder there is. What it gives is looked at once, here, right behind the call.

An embedder may be anybody's. What is no vector would be stored as nothing, or searched for without finding anything, or
be refused by a store that knows nothing of where it came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from pipeline.errors import EmbedderError
from pipeline.interfaces import Embedder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def dimension_of(embedder: Embedder) -> int:
    """The embedder's dimension, as Python's own number: NumPy's are no JSON.

    Raises:
        EmbedderError: it is none.
    """
    given: object = embedder.dimension
    if not isinstance(given, Integral) or given < 1:
        raise EmbedderError(f"the embedder {embedder.name}: its dimension is {given!r}, not a whole number over 0")
    return int(given)


def embed_documents(embedder: Embedder, texts: Sequence[str]) -> NDArray[np.float32]:
    """A vector of each text; lists of numbers are taken, too.

    Raises:
        EmbedderError: the embedder gave something else.
    """
    import numpy as np

    dimension = dimension_of(embedder)
    if not texts:
        return np.zeros((0, dimension), dtype=np.float32)
    vectors = _checked(embedder, "embed_documents", embedder.embed_documents(texts), (len(texts), dimension))
    row = first_not_finite(vectors)
    if row is not None:
        raise EmbedderError(
            f"the embedder {embedder.name}: embed_documents gave NaN or infinity for the text {texts[row]!r:.100}"
        )
    return vectors


def embed_query(embedder: Embedder, text: str) -> NDArray[np.float32]:
    """The vector of a query; a list of numbers is taken, too.

    Raises:
        EmbedderError: the embedder gave something else.
    """
    vector = _checked(embedder, "embed_query", embedder.embed_query(text), (dimension_of(embedder),))
    if first_not_finite(vector[None]) is not None:
        raise EmbedderError(f"the embedder {embedder.name}: embed_query gave NaN or infinity for {text!r:.100}")
    return vector


def first_not_finite(vectors: NDArray[np.float32]) -> int | None:
    """Which row is the first that has NaN or infinity in it; None if none has."""
    import numpy as np

    finite = np.isfinite(vectors).all(axis=1)
    return None if finite.all() else int(np.argmin(finite))


def _checked(embedder: Embedder, method: str, given: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """What was given, as an array of this shape."""
    import numpy as np

    what, cause = str(given) if given is None else type(given).__name__, None
    if given is not None:
        try:
            with np.errstate(over="ignore"):  # beyond float32 it is infinity, which is looked for
                vectors = np.asarray(given, dtype=np.float32)
            if vectors.shape == shape:
                return vectors
            what += f" of shape {vectors.shape}"
        except Exception as error:  # noqa: BLE001  whatever arrays of other libraries raise
            what, cause = f"{what}, which is no array of numbers ({error})", error
    wanted = (
        f"{shape}: a row for each text, of the embedder's dimension" if len(shape) > 1 else f"{shape}, its dimension"
    )
    raise EmbedderError(
        f"the embedder {embedder.name}: {method} gave {what}; expected is an array of shape {wanted}"
    ) from cause
