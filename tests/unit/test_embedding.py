"""What an embedder gives is looked at wherever it is asked: it may be anybody's."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.core import Pipeline
from pipeline.errors import EmbedderError
from pipeline.stores.edge import EdgeStore
from pipeline.types import Document
from tests.fakes import FakeEmbedder, FakeStore


class Odd(FakeEmbedder):
    """Its vectors go through ``answer``, once it is set."""

    def __init__(self, dimension: int = 8, name: str = "odd@1") -> None:
        super().__init__(dimension, name)
        self.answer: Callable[[NDArray[np.float32]], Any] | None = None

    def embed_documents(self, texts: Sequence[str]) -> Any:
        vectors = super().embed_documents(texts)
        return vectors if self.answer is None else self.answer(vectors)

    def embed_query(self, text: str) -> Any:
        vector = super().embed_query(text)
        return vector if self.answer is None else self.answer(vector)


def broken(row: int) -> Callable[[NDArray[np.float32]], Any]:
    def answer(vectors: NDArray[np.float32]) -> Any:
        vectors[row, 1] = np.nan
        return vectors

    return answer


@pytest.fixture
def odd() -> Odd:
    return Odd()


@pytest.fixture
def rag(odd: Odd, tmp_path: Path) -> Iterator[Pipeline]:
    """A collection on the real engine that holds one document."""
    store = EdgeStore(tmp_path / "collections" / "documents")
    with Pipeline(embedder=odd, store=store, chunk_tokens=32, chunk_overlap=0) as rag:
        rag.ingest(Document(id="old", text="backups run at night"))
        yield rag


NEW = [Document(id="a", text="apples"), Document(id="b", text="pears"), Document(id="old", text="changed")]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda vectors: None, "gave None; expected is an array of shape (3, 8): a row for each text"),
        (lambda vectors: vectors[:-1], "gave ndarray of shape (2, 8); expected is an array of shape (3, 8)"),
        (lambda vectors: vectors[:, :5], "gave ndarray of shape (3, 5); expected is an array of shape (3, 8)"),
        (lambda vectors: vectors[0].tolist(), "gave list of shape (8,); expected"),
        (lambda vectors: [[1.0], [1.0, 2.0], []], "gave list, which is no array of numbers ("),
        (lambda vectors: (row for row in vectors), "gave generator, which is no array of numbers ("),
        (lambda vectors: "vectors", "gave str, which is no array of numbers ("),
        (broken(1), "gave NaN or infinity for the text 'pears'"),
        (lambda vectors: vectors.astype(np.float64) * 1e300, "gave NaN or infinity for the text 'apples'"),
    ],
    ids=[
        "None",
        "too few",
        "another dimension",
        "one",
        "of many lengths",
        "generator",
        "text",
        "NaN",
        "beyond float32",
    ],
)
def test_what_are_no_vectors_of_documents(rag: Pipeline, odd: Odd, answer: Any, says: str) -> None:
    """Nothing is said to be written, and what was there stays."""
    odd.answer = answer
    with pytest.raises(EmbedderError) as caught:
        rag.ingest(NEW)
    assert f"the embedder odd@1: embed_documents {says}" in str(caught.value)
    odd.answer = None
    assert [("old", True)] == [(one.document_id, one.complete) for one in rag.documents()]
    assert (2, 1) == ((report := rag.ingest(NEW)).new, report.changed)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda vector: None, "gave None; expected is an array of shape (8,), its dimension"),
        (lambda vector: vector[None], "gave ndarray of shape (1, 8); expected is an array of shape (8,)"),
        (lambda vector: vector[:5], "gave ndarray of shape (5,); expected is an array of shape (8,)"),
        (lambda vector: "vector", "gave str, which is no array of numbers ("),
        (lambda vector: vector * np.nan, "gave NaN or infinity for 'when do backups run?'"),
    ],
    ids=["None", "a row", "another dimension", "text", "NaN"],
)
def test_what_is_no_vector_of_a_query(rag: Pipeline, odd: Odd, answer: Any, says: str) -> None:
    """The embedder is to blame, and not the collection."""
    odd.answer = answer
    with pytest.raises(EmbedderError) as caught:
        rag.query("when do backups run?")
    assert f"the embedder odd@1: embed_query {says}" in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        lambda vectors: vectors.tolist(),
        lambda vectors: vectors.astype(np.float64),
        lambda vectors: vectors.astype(np.float16),
        lambda vectors: tuple(vectors.tolist()),
    ],
    ids=["lists", "float64", "float16", "tuple"],
)
def test_numbers_of_any_kind_are_vectors(rag: Pipeline, odd: Odd, answer: Any) -> None:
    """Lists of lists are what LangChain's embedders give."""
    odd.answer = answer
    assert 2 == rag.ingest(NEW).new
    assert "b" == rag.query("pears").hits[0].document_id


def test_wherever_documents_are_embedded(rag: Pipeline, odd: Odd, tmp_path: Path) -> None:
    """Import, reindex, repair, a deletion that leaves a file's document to its copy, and a prune that does."""
    folder = tmp_path / "files"
    folder.mkdir()
    first, second = folder / "a.txt", folder / "b.txt"
    for file in (first, second):
        file.write_text("equal words")
    rag.ingest(folder)
    rag.export_to(tmp_path / "all.jsonl")
    other = Odd(name="odd@2")
    other.answer = odd.answer = lambda vectors: None
    again = Pipeline(embedder=other, store=rag.store, chunk_tokens=32, chunk_overlap=0)
    with pytest.raises(EmbedderError, match="odd@2: embed_documents gave None"):
        again.reindex()
    empty = Pipeline(embedder=odd, store=FakeStore(), chunk_tokens=32, chunk_overlap=0)
    with pytest.raises(EmbedderError, match="odd@1: embed_documents gave None"):
        empty.import_from(tmp_path / "all.jsonl")
    with pytest.raises(EmbedderError, match="odd@1: embed_documents gave None"):
        rag.delete(first.as_posix())
    first.unlink()
    with pytest.raises(EmbedderError, match="odd@1: embed_documents gave None"):
        rag.ingest(folder, prune=True)
    odd.answer = None
    assert 1 == rag.ingest(folder, prune=True).chunks_written
    assert "b.txt\nequal words" == odd.embedded[-1]


def test_no_texts_are_not_asked_for(rag: Pipeline) -> None:
    """A reindex that can take all vectors over has none, and some models fail of an empty list."""

    class Never(Odd):
        def embed_documents(self, texts: Sequence[str]) -> Any:
            raise AssertionError(texts)

    rag.store.bm25 = "another"
    again = Pipeline(embedder=Never(), store=rag.store, chunk_tokens=32, chunk_overlap=0)
    assert 1 == again.reindex().chunks


@pytest.mark.parametrize("dimension", [0, -1, None, "8", 8.0])
def test_a_dimension_that_is_none(dimension: Any) -> None:
    """Said at the first use: to know it a model may have to be loaded, or an endpoint asked."""
    odd = Odd()
    odd.dimension = dimension
    with Pipeline(embedder=odd, store=FakeStore(), chunk_tokens=32) as rag:
        for use in (lambda: rag.query("apples"), lambda: rag.ingest(NEW)):
            with pytest.raises(
                EmbedderError, match=f"odd@1: its dimension is {dimension!r}, not a whole number over 0"
            ):
                use()


def test_a_dimension_of_numpys(tmp_path: Path) -> None:
    """As the last of an array's shape may be; it is written into the collection's fingerprint."""
    odd = Odd()
    odd.dimension = np.int64(8)  # type: ignore[assignment]
    with Pipeline(embedder=odd, store=EdgeStore(tmp_path / "documents"), chunk_tokens=32, chunk_overlap=0) as rag:
        assert 3 == rag.ingest(NEW).new
        assert "a" == rag.query("apples").hits[0].document_id
        assert rag.verify().clean
