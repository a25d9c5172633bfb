from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.inference.engine import LENGTH_STEP, TOKEN_BUDGETS, _quota, batches, budget, padded

LENGTHS = st.lists(st.integers(1, 600), max_size=60).map(lambda lengths: sorted(lengths, reverse=True))


@given(LENGTHS, st.integers(1, 4096))
def test_each_sequence_is_in_one_batch(lengths: list[int], budget: int) -> None:
    """Batches follow each other without gap or overlap, and none is empty."""
    places = [place for rows in batches(lengths, budget) for place in range(len(lengths))[rows]]
    assert list(range(len(lengths))) == places
    assert all(rows.stop > rows.start for rows in batches(lengths, budget))


@given(LENGTHS, st.integers(1, 4096))
def test_a_batch_keeps_to_the_budget(lengths: list[int], budget: int) -> None:
    """Padded tokens stay within the budget; a sequence that alone is longer has a batch of its own."""
    for rows in batches(lengths, budget):
        batch = lengths[rows]
        assert len(batch) == 1 or len(batch) * padded(max(batch)) <= budget


def test_batches_are_full() -> None:
    """As many sequences as the budget has room for run together."""
    sizes = [len(range(100)[rows]) for rows in batches([160] * 100, 1024)]
    assert [6] * 16 + [4] == sizes


def test_no_sequences_no_batches() -> None:
    """Nothing to do is no error."""
    assert [] == list(batches([], 1024))


@pytest.mark.parametrize("length", [1, LENGTH_STEP, LENGTH_STEP + 1, 511])
def test_padding_is_less_than_a_step(length: int) -> None:
    """Lengths grow to the next multiple of the step, so that few shapes come up."""
    assert 0 == padded(length) % LENGTH_STEP
    assert 0 <= padded(length) - length < LENGTH_STEP


@pytest.mark.parametrize(
    ("count", "length", "streams", "expected"),
    [
        (100, 160, 2, [5] * 20),
        (17, 160, 2, [3] * 5 + [2]),
        (10, 500, 2, [1] * 10),
        (12, 500, 2, [2] * 6),
        (50, 160, 16, [4] * 12 + [2]),
        (16, 160, 16, [1] * 16),
        (1, 900, 2, [1]),
        (0, 160, 2, []),
    ],
)
def test_no_core_waits_long_for_another(count: int, length: int, streams: int, expected: list[int]) -> None:
    """As many batches for each, if these are not too small for that: fifty candidates are thirteen on sixteen cores."""
    lengths = [length] * count
    assert expected == [len(lengths[rows]) for rows in batches(lengths, budget(lengths, streams))]


@given(LENGTHS, st.integers(1, 16))
def test_work_is_shared_as_evenly_as_batches_allow(lengths: list[int], streams: int) -> None:
    """No core has more than its share and one batch of a budget."""
    ends = [0] * streams
    for rows in batches(lengths, budget(lengths, streams)):
        ends[ends.index(min(ends))] += len(lengths[rows]) * padded(lengths[rows][0])
    assert max(ends) <= sum(ends) / streams + max(padded(max(lengths, default=0)), TOKEN_BUDGETS[-1])


@pytest.mark.parametrize(
    ("content", "cores"), [("200000 100000", 2), ("150000 100000", 2), ("max 100000", 8), ("", 8), (None, 8)]
)
def test_a_containers_cpu_quota_is_obeyed(tmp_path: Path, content: str | None, cores: int) -> None:
    """More threads than the quota has CPUs would be stopped in turn."""
    if content is not None:
        (tmp_path / "cpu.max").write_text(content)
    assert cores == _quota(tmp_path / "cpu.max", 8)
