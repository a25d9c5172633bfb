from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.core import Pipeline
from pipeline.errors import FingerprintError, SettingsError
from pipeline.types import Chunk, Document
from tests.fakes import FakeEmbedder, FakeStore


def text(word: str, sentences: int = 20) -> str:
    return " ".join(f"This is sentence {i} about {word}." for i in range(sentences))


def filled(*documents: Document) -> tuple[Pipeline, FakeStore]:
    store = FakeStore()
    rag = Pipeline(embedder=FakeEmbedder(), store=store, chunk_tokens=32, chunk_overlap=0)
    rag.ingest(documents)
    return rag, store


A = Document(id="a", text=text("apples"), title="Fruit", source="shelf", metadata={"lang": "en", "tags": ["x"]})
B = Document(id="b", text=text("plums"))


def test_documents_lists_each_document_once() -> None:
    """Of two versions the one that queries answer with."""
    rag, store = filled(A, B)
    _, older = filled(Document(id="a", text=text("pears")))
    store.points.update(list(older.points.items())[:2])
    found = {version.document_id: version for version in rag.documents()}
    assert {"a", "b"} == set(found)
    assert ("shelf", A.content_hash(), True) == (found["a"].source, found["a"].content_hash, found["a"].complete)
    assert [] == list(filled()[0].documents())


@pytest.mark.parametrize("wrong", [5, None, b"a"])
def test_ids_that_are_no_strings(wrong: Any) -> None:
    """Are named, and nothing is removed for them."""
    rag, _ = filled(A, B)
    with pytest.raises(SettingsError, match="a document's id is a string, not "):
        rag.get(wrong)
    for given in (wrong, ["a", wrong], iter(["a", wrong])):
        with pytest.raises(SettingsError, match="a document's id is a string, not "):
            rag.delete(given)
    assert {"a", "b"} == {version.document_id for version in rag.documents()}


def test_get_returns_chunks_in_the_order_of_the_text() -> None:
    """All of one version, with the metadata that they share."""
    rag, store = filled(A, B)
    _, older = filled(Document(id="a", text=text("pears")))
    store.points.update(list(older.points.items())[:2])
    found = rag.get("a")
    assert found is not None
    assert ("a", "shelf", A.metadata, True) == (found.id, found.source, found.metadata, found.complete)
    assert list(range(found.count)) == [chunk.index for chunk in found.chunks]
    assert A.text == " ".join(chunk.text for chunk in found.chunks)
    assert None is rag.get("nothing")


def test_a_hit_with_its_neighbours() -> None:
    """What neighbours share is there once; beyond the first and last chunk there is nothing."""
    words = [f"w{i}" for i in range(120)]
    store = FakeStore()
    rag = Pipeline(embedder=FakeEmbedder(), store=store, search="dense", chunk_tokens=24, chunk_overlap=6)
    rag.ingest([Document(id="a", text=" ".join(words))])
    hits = {hit.chunk.index: hit for hit in rag.query("w50", top_k=20).hits}
    assert len(hits) > 4
    first, middle, last = hits[0], hits[2], hits[len(hits) - 1]
    assert middle.text == rag.context(middle, before=0, after=0)
    around = rag.context(middle)
    assert around in " ".join(words)
    assert around.startswith(hits[1].text)
    assert around.endswith(hits[3].text)
    assert " ".join(words) == rag.context(middle, before=99, after=99)
    assert rag.context(first).startswith("w0 ")
    assert rag.context(last, before=2).endswith(" w119")
    with pytest.raises(SettingsError, match="numbers of chunks"):
        rag.context(middle, before=-1)
    other = Pipeline(embedder=FakeEmbedder(), store=store, search="dense", chunk_overlap=0)
    assert around == other.context(middle)  # as the collection was made
    rag.ingest([Document(id="a", text="another text")])
    assert middle.text == rag.context(middle)


def test_get_tells_what_was_cut_off() -> None:
    """Chunks are missing, and the document says so."""
    rag, store = filled(A)
    store.delete_chunks([chunk.id for chunk, _ in store.points.values() if chunk.index == 1])
    found = rag.get("a")
    assert found is not None
    assert (False, found.count - 1) == (found.complete, len(found.chunks))


def test_delete_counts_the_documents_that_were_there() -> None:
    """One id or any number of them, as they come."""
    rag, store = filled(A, B)
    assert 0 == rag.delete(["c"])
    assert 1 == rag.delete("a")
    assert {"b"} == {chunk.document_id for chunk, _ in store.points.values()}

    def ids() -> Iterator[str]:
        yield from ("a", "b", "b")
        yield from (f"unknown {i}" for i in range(3_000))

    assert 1 == rag.delete(ids())
    assert {} == store.points


def test_get_while_the_document_is_replaced() -> None:
    """Between the look at the ledger and that at the chunks: it looks again."""

    class Replacing(FakeStore):
        left = 0

        def chunks(self, document_ids: Sequence[str] | None = None) -> Iterator[Chunk]:
            if self.left:
                self.left -= 1
                self.points.clear()
                self.points.update(filled(Document(id="a", text=text(f"version {self.left}")))[1].points)
            return super().chunks(document_ids)

    store = Replacing()
    rag = Pipeline(embedder=FakeEmbedder(), store=store, chunk_tokens=32, chunk_overlap=0)
    rag.ingest([A])
    store.left = 3
    found = rag.get("a")
    assert found is not None
    assert (text("version 0").split()[0], found.count) == (found.chunks[0].text.split()[0], len(found.chunks))
    store.left = 1000
    assert rag.get("a") is None


def test_delete_with_another_model_is_refused(tmp_path: Path) -> None:
    """Of equal files the one that stays gets a name, and so a vector, of its own."""
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("Equal texts.")
    rag, store = filled()
    rag.ingest(tmp_path)
    other = Pipeline(embedder=FakeEmbedder(name="other@1"), store=store, chunk_tokens=32, chunk_overlap=0)
    with pytest.raises(FingerprintError, match="other@1"):
        other.delete(str(tmp_path / "a.txt"))
    assert 1 == rag.delete(str(tmp_path / "a.txt"))


def test_documents_and_delete_by_metadata() -> None:
    """What answers queries counts: an older version that is still there does not make a document pass."""
    rag, store = filled(A, B, Document(id="c", text=text("pears"), metadata={"lang": "en"}))
    older = filled(Document(id="b", text=text("figs"), metadata={"lang": "en"}))[1]
    store.points.update(list(older.points.items())[:1])
    assert ["a", "c"] == sorted(version.document_id for version in rag.documents(where={"lang": "en"}))
    assert all(version.complete for version in rag.documents(where={"lang": "en"}))
    assert 0 == rag.delete(where={"lang": "zh"})
    assert 2 == rag.delete(where=[{"lang": "en"}, {"lang": "zh"}])
    assert ["b"] == [version.document_id for version in rag.documents()]


def test_delete_by_metadata_takes_no_document_of_which_a_part_passes() -> None:
    """A page is that of a chunk: who asks for the first page does not mean the book."""
    rag, store = filled(A, B)
    chunk, vector = next(pair for pair in store.points.values() if pair[0].document_id == "b")
    store.points[chunk.id] = replace(chunk, metadata={"page": 1}), vector
    assert ["b"] == [version.document_id for version in rag.documents(where={"page": 1})]
    assert 0 == rag.delete(where={"page": 1})


def test_delete_by_metadata_takes_all_names() -> None:
    """Of files with equal content, which have one document."""
    equal = [Document(id=f"/files/{i}.txt", text=text("figs"), metadata={"lang": "en"}) for i in (1, 2)]
    rag, store = filled(B)
    chunks = filled(equal[0])[1].points
    for chunk, vector in chunks.values():
        store.points[chunk.id] = replace(chunk, source=equal[0].id, copies=(equal[1].id,)), vector
    assert 1 == rag.delete(where={"lang": "en"})
    assert ["b"] == [version.document_id for version in rag.documents()]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"where": {}}, "would remove everything"),
        ({"where": {"source": "a"}}, "by metadata, not by source"),
        ({"where": {"lang": "en", "document_id": {"not": "a"}}}, "by metadata, not by document_id"),
        ({"where": {"lang": "en"}, "document_ids": ["a"]}, "not both"),
        ({"where": {"lang": {"not": []}}}, "would remove everything"),
        ({"where": {"file_name": "a.md"}}, "by metadata, not by file_name"),
        ({"where": {'"file_name"': "a.md"}}, "by metadata, not by .file_name"),
        ({"where": [{"lang": "en"}, {}]}, "would remove everything"),
        ({"where": [{"lang": "en"}, {"lang": {"not": []}}]}, "would remove everything"),
        ({"where": [{"lang": "en"}, {"source": "a"}]}, "by metadata, not by source"),
    ],
)
def test_a_delete_that_says_too_little_or_too_much(given: dict[str, Any], said: str) -> None:
    """Removes nothing."""
    rag, _ = filled(A, B)
    with pytest.raises(SettingsError, match=said):
        rag.delete(**given)
    assert 2 == len(list(rag.documents()))
