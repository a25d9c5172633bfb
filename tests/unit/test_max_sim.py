"""Late interaction's score."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.rerankers.late_interaction import max_sim, softplus

QUERY = np.array([[1, 0], [0, 1]], dtype=np.float32)
EVEN = np.ones(2, dtype=np.float32)


def text(*rows: tuple[int, int]) -> NDArray[np.int8]:
    return np.array(rows, dtype=np.int8)


def test_each_query_token_counts_its_nearest_text_token() -> None:
    """The mean over the query's tokens; texts of any length side by side."""
    found = max_sim(QUERY, EVEN, [text((127, 0)), text((0, 127), (64, 0), (-127, 0)), text((-127, 0))])
    assert [0.5, 1.0, -0.5] == found.tolist()


def test_weights_are_shares() -> None:
    """Three quarters for the first query token, whatever they add up to."""
    assert [0.75] == max_sim(QUERY, np.array([6, 2], dtype=np.float32), [text((1, 0))]).tolist()


def test_softplus_does_not_overflow() -> None:
    """Far right it is the value itself, far left nothing."""
    assert softplus(np.array([0, 500, -500], dtype=np.float32)).tolist() == pytest.approx([np.log(2), 500, 0])
