from pipeline.stores.common import document_batches
from pipeline.types import Chunk


def test_runs_end_where_documents_do() -> None:
    """A document is written in one step, however it lies; only one that is too long for that takes several."""
    sizes = (5, 90, 60, 200, 1_100, 3, 2)
    chunks = [Chunk(f"d{n}", "v1", i, size, "", "", "s") for n, size in enumerate(sizes) for i in range(size)]
    runs = [chunks[run] for run in document_batches(chunks, size=100, longest=256)]
    assert chunks == [chunk for run in runs for chunk in run]
    assert [95, 60, 200, 256, 256, 256, 256, 81] == [len(run) for run in runs]


def test_a_short_document_is_never_cut() -> None:
    """Nor where a run takes more than the longest document that is written whole."""
    chunks = [Chunk(f"d{n}", "v1", i, size, "", "", "s") for n, size in enumerate((2, 2, 8, 3, 2)) for i in range(size)]
    assert [4, 3, 3, 7] == [len(chunks[run]) for run in document_batches(chunks, size=10, longest=3)]


def test_versions_of_one_document_are_two() -> None:
    """What stands together in the ledger is a version."""
    chunks = [Chunk("d", version, i, 60, "", "", "s") for version in ("v1", "v2") for i in range(60)]
    assert [60, 60] == [len(chunks[run]) for run in document_batches(chunks, size=100, longest=100)]
