"""Errors go between processes whole."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

from pipeline import errors
from pipeline.errors import RagError, RerankerError, StoreUnavailableError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RagError)]
MADE: dict[type[RagError], Callable[[], RagError]] = {
    RerankerError: lambda: RerankerError("it failed", provider="cohere", status=500, retryable=True, operator=True),
    StoreUnavailableError: lambda: StoreUnavailableError("it failed", retry_after=3.0),
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_errors_survive_pickle_and_copy(kind: type[RagError]) -> None:
    """With message, attributes and notes, by each protocol of pickle."""
    error = MADE.get(kind, lambda: kind("it failed"))()
    error.add_note("while it was tried")
    pickled = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for again in (*pickled, copy.copy(error), copy.deepcopy(error)):
        assert type(error) is type(again)
        assert ("it failed", error.args, vars(error)) == (str(again), again.args, vars(again))


def test_all_errors_are_tried() -> None:
    """The list above is taken from the module."""
    assert {RagError, RerankerError, StoreUnavailableError} < set(KINDS)
