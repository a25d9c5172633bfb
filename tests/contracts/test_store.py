"""What every Store does, on the embedded engine, on the client's local mode and, if there is one, on a real server.

``RAG_TEST_QDRANT_URL`` (and ``RAG_TEST_QDRANT_API_KEY``) name a server; the collections made there are removed again.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from qdrant_client import QdrantClient

from pipeline.errors import SettingsError, StoreError
from pipeline.interfaces import Store
from pipeline.stores.connection import connect
from pipeline.stores.edge import EdgeStore
from pipeline.stores.hybrid import convex
from pipeline.stores.server import ServerStore
from pipeline.stores.storage import Storage
from pipeline.types import (
    Candidate,
    Chunk,
    DocumentVersion,
    Fingerprint,
    HybridFusion,
    LedgerEntry,
    SearchMode,
    StoreCount,
)
from pipeline.where import Where
from tests.fakes import FakeEmbedder

EMBEDDER = FakeEmbedder(dimension=64)
MODES: tuple[SearchMode, ...] = get_args(SearchMode)
SERVER_URL = os.environ.get("RAG_TEST_QDRANT_URL")

TEXTS = [
    "The steam engine drove the looms of Manchester.",
    "Photosynthesis turns sunlight, water and carbon dioxide into sugar.",
    "A hash table finds a key in constant time on average.",
    "The treaty was signed in 1648 and ended thirty years of war.",
    "Python reads JSON with the json module of its standard library.",
    "The heart of a blue whale weighs as much as a small car.",
    "重庆市是中国的直辖市，位于长江上游。",
    "光合作用把阳光、水和二氧化碳变成糖。",
    "散列表平均在常数时间内找到一个键。",
    "该条约于1648年签订，结束了三十年战争。",
    "蓝鲸的心脏和一辆小汽车一样重。",
    "蒸汽機推動了曼徹斯特的織布機。",
]


def memory_store(_: Path) -> Iterator[Store]:
    yield ServerStore(QdrantClient(":memory:"), "documents")


def edge_store(path: Path) -> Iterator[Store]:
    yield EdgeStore(path / "collections" / "documents")


class QuantizedEdgeStore(EdgeStore):
    """Builds the index after each write, so that these few chunks too are found with a graph and their int8 copies."""

    def upsert(self, chunks: Sequence[Chunk], vectors: NDArray[np.float32]) -> None:
        super().upsert(chunks, vectors)
        with self._engine("optimize") as (_, engine):
            engine.optimize()


def int8_edge_store(path: Path) -> Iterator[Store]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.stores.edge.INDEXING_KIB", 1)
        yield QuantizedEdgeStore(path / "collections" / "documents", storage=Storage("int8", on_disk=True))


def real_server_store(_: Path) -> Iterator[Store]:
    assert SERVER_URL is not None
    client = connect(SERVER_URL, api_key=os.environ.get("RAG_TEST_QDRANT_API_KEY"))
    name = f"test-{uuid.uuid4()}"
    yield ServerStore(client, name)
    client = connect(SERVER_URL, api_key=os.environ.get("RAG_TEST_QDRANT_API_KEY"))
    client.delete_collection(name)
    client.close()


MAKERS: dict[str, Callable[[Path], Iterator[Store]]] = {
    "edge": edge_store,
    "edge-int8": int8_edge_store,
    "memory": memory_store,
}
if SERVER_URL:
    MAKERS["server"] = real_server_store


@pytest.fixture(params=list(MAKERS))
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store without a collection."""
    made = MAKERS[request.param](tmp_path)
    store = next(made)
    yield store
    store.close()
    next(made, None)


@pytest.fixture
def store(empty: Store) -> Store:
    """A store whose collection holds nothing yet."""
    empty.ensure_ready(fingerprint(empty))
    return empty


def fingerprint(store: Store) -> Fingerprint:
    return Fingerprint(EMBEDDER.name, EMBEDDER.dimension, chunk_tokens=256, chunk_overlap=32, bm25=store.bm25)


def chunk(
    text: str, document_id: str = "doc", index: int = 0, count: int = 1, version: str = "v1", **metadata: Any
) -> Chunk:
    return Chunk(document_id, version, index, count, text, "", f"/files/{document_id}", metadata)


def corpus() -> list[Chunk]:
    """One document for each text, with metadata of every kind that can be filtered."""
    return [
        Chunk(
            document_id=f"doc-{i}",
            content_hash="v1",
            index=0,
            count=1,
            text=text,
            title=f"Title {i}" if i % 2 else "",
            source=f"/files/{i % 3}.txt",
            metadata={
                "lang": "en" if i < 6 else "zh",
                "number": i,
                "price": i + 0.5 if i % 2 else i,
                "draft": i % 4 == 0,
                "tags": ["old", f"tag{i}"] if i < 4 else [f"tag{i}"],
                "published": f"2024-01-{i + 1:02}",
                "author": {"name": f"author {i % 2}", "born": {"year": 1900 + i}},
                "语言": "中文" if i >= 6 else "英文",
            },
        )
        for i, text in enumerate(TEXTS)
    ]


def write(store: Store, chunks: list[Chunk]) -> None:
    clean = [item.full_text.encode("utf-8", "replace").decode() for item in chunks]
    store.upsert(chunks, EMBEDDER.embed_documents(clean))


def search(store: Store, text: str, limit: int = 10, **options: Any) -> list[Candidate]:
    return store.search(text, EMBEDDER.embed_query(text), limit=limit, **options)


def found_ids(candidates: list[Candidate]) -> list[str]:
    return [candidate.chunk.document_id for candidate in candidates]


# ------------------------------------------------------------------ without a collection


def test_no_collection_is_no_error(empty: Store) -> None:
    """Reading before anything was ingested gives nothing; it does not fail."""
    assert None is empty.fingerprint()
    assert [] == search(empty, "anything")
    assert [] == list(empty.versions())
    assert [] == list(empty.versions(["doc"]))
    assert StoreCount(0, 0) == empty.count()
    assert empty.digest() == empty.digest()
    assert 0 == empty.delete_documents(["doc"])
    assert 0 == empty.delete_versions({"doc": {"v1"}})
    empty.optimize()


def test_write_before_ready_is_refused(empty: Store) -> None:
    """A chunk without a fingerprint beside it could be searched with another model's vectors."""
    with pytest.raises(StoreError, match="ensure_ready"):
        write(empty, [chunk("text")])


def test_fingerprint_is_kept(empty: Store) -> None:
    """The fingerprint comes back equal, and a second ensure_ready leaves it alone."""
    first = fingerprint(empty)
    empty.ensure_ready(first)
    empty.ensure_ready(Fingerprint("other", 64, 1, 0, "other"))
    assert first == empty.fingerprint()


def test_close_twice(store: Store) -> None:
    """Closing again is fine; using it afterwards says that it was closed."""
    store.close()
    store.close()
    with pytest.raises(StoreError, match="was closed"):
        search(store, "anything")


# ------------------------------------------------------------------ writing and reading back


def test_all_chunks_can_be_read_back(store: Store) -> None:
    """Of the whole collection or of some documents, as they were written."""
    written = corpus()
    store.upsert(written, EMBEDDER.embed_documents([chunk.full_text for chunk in written]))
    assert {chunk.id: chunk for chunk in written} == {chunk.id: chunk for chunk in store.chunks()}
    assert {"doc-3", "doc-7"} == {chunk.document_id for chunk in store.chunks(["doc-3", "doc-7", "nowhere"])}


def test_round_trip(store: Store) -> None:
    """Every field of a chunk comes back equal, by every way of searching."""
    chunks = corpus()
    write(store, chunks)
    expected = {item.id: item for item in chunks}
    for mode in MODES:
        for candidate in search(store, "Python 重庆 1648", limit=50, mode=mode):
            assert expected[candidate.chunk.id] == candidate.chunk


@pytest.mark.parametrize(
    "text",
    [
        "NUL \0 inside",
        "lone surrogate \udce9 here",
        "emoji 👩‍🔬 and 𠮷野家",
        "‮right to left‬",
        "e\u0301 é ﬁ",
        "\u2028\ufeff",
        "",
    ],
    ids=["nul", "surrogate", "astral", "bidi", "combining", "separators", "empty"],
)
def test_odd_unicode_round_trip(store: Store, text: str) -> None:
    """Any Python string survives in text, title, source, keys and values of metadata."""
    odd = Chunk("doc", "v1", 0, 1, text, f"title {text}", f"source {text}", {f"key {text}": [text, {"in": text}]})
    write(store, [odd])
    assert [odd] == [candidate.chunk for candidate in search(store, "title", mode="dense")]
    assert [odd.source] == [version.source for version in store.versions()]


def test_odd_json_round_trip(store: Store) -> None:
    """Numbers that the engine itself would round or refuse come back exactly."""
    metadata: dict[str, Any] = {
        "long": 123456789.123456789,
        "tiny": 5e-324,
        "huge": 1.7976931348623157e308,
        "big": 2**70,
        "negative": -(2**63) - 1,
        "infinite": float("inf"),
        "one": 1.0,
        "none": None,
        "empty": [{}, [], ""],
        "": {"a.b": True},
    }
    odd = chunk("text", **metadata)
    write(store, [odd])
    (back,) = [candidate.chunk for candidate in search(store, "text")]
    assert odd == back
    assert {key: type(value) for key, value in metadata.items()} == {
        key: type(value) for key, value in back.metadata.items()
    }


def test_upsert_is_idempotent(store: Store) -> None:
    """Writing the same chunks again changes nothing."""
    write(store, corpus())
    before = search(store, "thirty years of war", limit=50)
    write(store, corpus())
    after = search(store, "thirty years of war", limit=50)
    assert StoreCount(len(TEXTS), len(TEXTS)) == store.count()
    assert [c.chunk for c in before] == [c.chunk for c in after]
    assert [c.score for c in before] == pytest.approx([c.score for c in after])


def test_large_batch(store: Store) -> None:
    """More chunks than go into one request or one page are written and listed once each."""
    chunks = [chunk(f"text {i}", f"doc-{i // 2}", i % 2, 2) for i in range(2_600)]
    write(store, chunks)
    assert StoreCount(1_300, 2_600) == store.count()
    assert {(f"doc-{i}", 2) for i in range(1_300)} == {(item.document_id, item.present) for item in store.versions()}
    ids = [f"doc-{i}" for i in range(1_200)]
    assert set(ids) == {item.document_id for item in store.versions([*ids, *ids])}
    assert 2_400 == store.delete_documents(ids)
    assert StoreCount(100, 200) == store.count()


def test_the_digest_tells_one_state_from_another(store: Store) -> None:
    """Also where there are as many documents and chunks as before; and not one state from itself."""
    write(store, [chunk("one", "a"), chunk("two", "b")])
    before = store.digest()
    write(store, [chunk("three", "c")])
    more = store.digest()
    store.delete_documents(["b"])
    other = store.digest()
    write(store, [chunk("two", "b")])
    store.delete_documents(["c"])
    assert before == store.digest()
    write(store, [replace(chunk("two", "b"), content_hash="v2")])
    store.delete_versions({"b": {"v1"}})
    assert 4 == len({before, more, other, store.digest()})


def test_wrong_vectors_are_refused(store: Store) -> None:
    """Vectors of another shape, or with NaN, are refused: the engine would take the latter and never find them."""
    with pytest.raises(StoreError, match=r"shape \(1, 3\)"):
        store.upsert([chunk("text")], np.ones((1, 3), dtype=np.float32))
    with pytest.raises(StoreError, match="NaN"):
        store.upsert([chunk("text")], np.full((1, 64), np.nan, dtype=np.float32))
    assert StoreCount(0, 0) == store.count()


# ------------------------------------------------------------------ the ledger


def test_versions_tell_complete_from_partial(store: Store) -> None:
    """A version knows how many chunks it should have; a cut-off write shows as fewer."""
    write(store, [chunk(f"text {i}", "whole", i, 3) for i in range(3)])
    write(store, [chunk("text 0", "cut", 0, 2), chunk("text 0", "cut", 0, 1, version="v0")])
    found = sorted(store.versions(), key=lambda version: (version.document_id, version.content_hash))
    assert [
        DocumentVersion("cut", "v0", "/files/cut", present=1, count=1),
        DocumentVersion("cut", "v1", "/files/cut", present=1, count=2),
        DocumentVersion("whole", "v1", "/files/whole", present=3, count=3),
    ] == found
    assert [True, False, True] == [version.complete for version in found]
    assert ["whole"] == [version.document_id for version in store.versions(["whole", "unknown"])]
    assert [] == list(store.versions([]))


def test_copies_are_kept_and_found(store: Store) -> None:
    """A document is found by each of its sources; a copy counts once all chunks name it."""
    copies = ("/b.md", "/c\udce9.md")
    shared = [Chunk("/a.md", "same", i, 2, f"text {i}", "", "/a.md", {}, copies) for i in range(2)]
    write(store, [*shared, chunk("text", "/b.md", version="own"), chunk("text", "other")])
    version = DocumentVersion("/a.md", "same", "/a.md", present=2, count=2, copies=copies)
    assert [version] == list(store.related([], ["same"]))
    assert [version] == list(store.related(["/c\udce9.md"], []))
    assert {"same", "own"} == {item.content_hash for item in store.related(["/b.md"], ["unknown"])}
    assert [] == list(store.related([], []))
    for source in ("/a.md", "/b.md"):
        found = search(store, "text", where={"source": source})
        assert {item.id for item in shared} == {candidate.chunk.id for candidate in found}
    assert shared == sorted(store.chunks(["/a.md"]), key=lambda item: item.index)
    assert {copies} == {entry.copies for entry in store.ledger() if entry.document_id == "/a.md"}
    write(store, [replace(shared[0], copies=("/d.md", "/b.md"))])
    assert [(("/b.md",), True)] == [(item.copies, item.torn) for item in store.versions(["/a.md"])]


def test_a_field_of_the_metadata_may_be_called_source(store: Store) -> None:
    """The plain name is that of the file; what the line of a JSONL file calls so is asked for within the metadata."""
    write(store, [replace(chunk("text", "1"), metadata={"source": "a wiki", "document_id": "D7"}), chunk("text", "2")])
    for where in ({"metadata.source": "a wiki"}, {"metadata.document_id": ["D7", "D8"]}):
        assert ["1"] == [candidate.chunk.document_id for candidate in search(store, "text", where=where)]
    assert [] == search(store, "text", where={"source": "a wiki"})


def test_delete_documents(store: Store) -> None:
    """All versions of the named documents go, and nothing else."""
    write(store, [chunk(f"text {i}", f"doc-{i}") for i in range(3)])
    write(store, [chunk("newer", "doc-0", version="v2")])
    assert 3 == store.delete_documents(["doc-0", "doc-2", "unknown"])
    assert ["doc-1"] == [version.document_id for version in store.versions()]
    assert ["doc-1"] == found_ids(search(store, "text"))
    assert StoreCount(1, 1) == store.count()


def test_delete_versions(store: Store) -> None:
    """Only the named versions of the named documents go: one that another writer has just brought stays."""
    write(store, [chunk("old", "a", version="v1"), chunk("new", "a", version="v2"), chunk("other", "b", version="v1")])
    write(store, [chunk("newest", "a", version="v3")])
    assert 1 == store.delete_versions({"a": {"v1", "v0"}, "unknown": {"v9"}})
    left = {("a", "v2"), ("a", "v3"), ("b", "v1")}
    assert left == {(item.document_id, item.content_hash) for item in store.versions()}
    assert 0 == store.delete_versions({"a": {"v1"}})


def test_ledger_has_an_entry_for_each_chunk(store: Store) -> None:
    """With the id that the chunk is stored under; the entry tells which id that should be."""
    assert [] == list(store.ledger())
    write(store, corpus())
    write(store, [Chunk("odd \udce9", "v1", 3, 5, "text", "", "source \udce9", {})])
    found = {entry.point_id: entry for entry in store.ledger()}
    wanted = [*corpus(), Chunk("odd \udce9", "v1", 3, 5, "", "", "source \udce9", {})]
    assert {item.id for item in wanted} == set(found)
    for item in wanted:
        assert LedgerEntry(item.id, item.document_id, "v1", item.index, item.count, item.source) == found[item.id]
        assert item.id == found[item.id].chunk_id


def test_chunks_come_with_their_vectors(store: Store) -> None:
    """As they were written, for these documents or all; each once, however many there are."""
    write(store, corpus())
    for ids in (None, ["doc-2", "doc-5", "unknown"]):
        found = {item.id: (item, vector) for item, vector in store.chunks_with_vectors(ids)}
        wanted = [item for item in corpus() if ids is None or item.document_id in ids]
        assert {item.id: item for item in wanted} == {id_: item for id_, (item, _) in found.items()}
        for item in wanted:
            expected = EMBEDDER.embed_documents([item.full_text])[0]
            np.testing.assert_allclose(expected, found[item.id][1], atol=1e-6)
    write(store, [chunk("text", "many", i, 1_200) for i in range(1_200)])
    assert 1_200 == len({item.id for item, _ in store.chunks_with_vectors(["many"])})


def test_delete_chunks(store: Store) -> None:
    """These chunks alone; unknown ids are no error."""
    chunks = [chunk(f"text {i}", "doc", i, 1_500) for i in range(1_500)]
    write(store, chunks)
    assert 1_200 == store.delete_chunks(item.id for item in chunks[:1_200])
    assert set(range(1_200, 1_500)) == {item.index for item in store.chunks()}
    assert 1 == store.delete_chunks([chunks[0].id])
    assert 0 == store.delete_chunks([])
    assert StoreCount(1, 300) == store.count()


# ------------------------------------------------------------------ searching


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("steam engine looms", "doc-0"),
        ("reading JSON in Python", "doc-4"),
        ("war that ended in 1648", "doc-3"),
        ("重庆在长江的哪里", "doc-6"),
        ("光合作用", "doc-7"),
        ("曼徹斯特的織布機", "doc-11"),
    ],
)
def test_finds_english_and_chinese(store: Store, mode: SearchMode, query: str, expected: str) -> None:
    """Each mode finds the right text for English, simplified and traditional Chinese queries."""
    write(store, corpus())
    assert expected == found_ids(search(store, query, mode=mode))[0]


def test_sparse_finds_numbers(store: Store) -> None:
    """A number alone is a word: both texts with the year 1648 are found, full-width digits too."""
    write(store, corpus())
    for query in ("1648", "１６４８"):
        assert {"doc-3", "doc-9"} == set(found_ids(search(store, query, mode="sparse")))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fusion", get_args(HybridFusion))
def test_order_and_ranks(store: Store, mode: SearchMode, fusion: HybridFusion) -> None:
    """Scores fall, ranks count from 1, and a smaller limit gives the head of the same list."""
    write(store, corpus())
    found = search(store, "the heart of the engine 心脏", limit=50, mode=mode, fusion=fusion)
    assert len(found) >= 3
    assert list(range(1, len(found) + 1)) == [candidate.rank for candidate in found]
    assert sorted((candidate.score for candidate in found), reverse=True) == [candidate.score for candidate in found]
    head = search(store, "the heart of the engine 心脏", limit=3, mode=mode, fusion=fusion)
    assert [(c.rank, c.chunk) for c in found[:3]] == [(c.rank, c.chunk) for c in head]
    # Where numpy multiplies (local mode) the last digit depends on where an array happens to lie in memory.
    assert [c.score for c in found[:3]] == pytest.approx([c.score for c in head])


def test_hybrid_score_is_of_the_fusion(store: Store) -> None:
    """A text that is first in both lists scores 2 / 60 with RRF (k = 60, ranks from 0), and more with DBSF."""
    write(store, corpus())
    query = TEXTS[4]
    assert 2 / 60 == pytest.approx(search(store, query, fusion="rrf")[0].score, rel=1e-5)
    assert search(store, query, fusion="dbsf")[0].score > 1.0


def test_each_candidate_is_scored_by_both_lists(store: Store) -> None:
    """Cosine and BM25 of all that either list has found, standardised and added, with a filter too."""
    words = ["red", "blue", "fox", "dog", "stone"]
    chunks = [
        chunk(f"{words[i % 5]} {words[i % 3]} {i} {'river' * (i % 4 == 0)}", f"{i}", half=i % 2) for i in range(400)
    ]
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((len(chunks), 64)).astype(np.float32)
    store.upsert(chunks, vectors)
    query, vector = "the red river 12", rng.standard_normal(64).astype(np.float32)
    for where in (None, {"half": 0}):
        cosine, bm25 = (
            {c.chunk.id: c.score for c in store.search(query, vector, limit=400, mode=mode, where=where, exact=True)}
            for mode in ("dense", "sparse")
        )
        listed = {*list(cosine)[:100], *list(bm25)[:100]}
        assert len(listed) > 100
        expected = convex({id_: cosine[id_] for id_ in sorted(listed)}, bm25)
        found = store.search(query, vector, limit=60, where=where, exact=True)
        assert sorted(expected.values(), reverse=True)[:60] == pytest.approx([c.score for c in found], abs=1e-4)
        assert [expected[c.chunk.id] for c in found] == pytest.approx([c.score for c in found], abs=1e-4)


def test_limit_larger_than_collection(store: Store) -> None:
    """Asking for more than there is gives what there is."""
    write(store, corpus())
    assert len(TEXTS) == len(search(store, "water", limit=1000, mode="dense"))
    assert len(TEXTS) == len(search(store, "water", limit=1000))


def test_equal_scores_have_a_fixed_order(store: Store) -> None:
    """Equal texts score alike and are ordered by their ids, whatever order they were written in."""
    twins = [chunk("twin text", f"doc-{i}") for i in (5, 1, 4, 2, 3)]
    write(store, twins)
    for mode in ("dense", "sparse"):
        assert sorted(item.id for item in twins) == [
            candidate.chunk.id for candidate in search(store, "twin text", mode=mode)
        ]


@pytest.mark.parametrize("query", ["the of and", "!!!", "👩‍🔬"])
def test_query_without_words(store: Store, query: str) -> None:
    """A query of stop words or signs finds nothing by BM25, and is searched by its vector alone in hybrid mode."""
    write(store, corpus())
    assert [] == search(store, query, mode="sparse")
    assert found_ids(search(store, query, mode="dense", limit=5)) == found_ids(search(store, query, limit=5))


def test_missing_vector_is_a_settings_error(store: Store) -> None:
    """Only a sparse search does without the query's vector."""
    write(store, corpus())
    assert "doc-4" == store.search("Python", None, limit=3, mode="sparse")[0].chunk.document_id
    with pytest.raises(SettingsError, match="vector"):
        store.search("Python", None, limit=3, mode="dense")


# ------------------------------------------------------------------ filters

FILTERS: list[tuple[str, Where, list[int]]] = [
    ("text", {"lang": "zh"}, [6, 7, 8, 9, 10, 11]),
    ("integer", {"number": 3}, [3]),
    ("float", {"price": 3.5}, [3]),
    ("integer equals float", {"price": 4.0}, [4]),
    ("true", {"draft": True}, [0, 4, 8]),
    ("false and text", {"draft": False, "lang": "en"}, [1, 2, 3, 5]),
    ("any of texts", {"lang": ["zh", "de"]}, [6, 7, 8, 9, 10, 11]),
    ("any of numbers", {"number": [1, 2, 99]}, [1, 2]),
    ("any of mixed", {"number": [1, "x", 2.0, False]}, [1, 2]),
    ("any of none", {"lang": []}, []),
    ("element of list", {"tags": "old"}, [0, 1, 2, 3]),
    ("any of elements", {"tags": ["tag5", "tag7"]}, [5, 7]),
    ("number range", {"number": {"gt": 2, "lte": 4}}, [3, 4]),
    ("range sees floats", {"price": {"gt": 1, "lt": 4}}, [1, 2, 3]),
    ("date range", {"published": {"gte": "2024-01-03", "lt": "2024-01-05"}}, [2, 3]),
    ("time range", {"published": {"gt": "2024-01-11T00:00:00+01:00"}}, [10, 11]),
    ("nested", {"author.name": "author 1"}, [1, 3, 5, 7, 9, 11]),
    ("nested twice", {"author.born.year": {"gte": 1910}}, [10, 11]),
    ("Chinese key and value", {"语言": "中文"}, [6, 7, 8, 9, 10, 11]),
    ("source", {"source": "/files/1.txt"}, [1, 4, 7, 10]),
    ("document id", {"document_id": ["doc-2", "doc-9"]}, [2, 9]),
    ("all must hold", {"lang": "zh", "number": {"lt": 9}, "source": "/files/2.txt"}, [8]),
    ("unknown key", {"nothing": "x"}, []),
    ("number is not text", {"number": "3"}, []),
    ("true is not one", {"number": True}, []),
    ("not", {"lang": {"not": "zh"}}, [0, 1, 2, 3, 4, 5]),
    ("none of", {"number": {"not": [1, 2, "x"]}, "lang": "en"}, [0, 3, 4, 5]),
    ("none of nothing", {"lang": {"not": []}}, list(range(12))),
    ("not true", {"draft": {"not": True}, "lang": "en"}, [1, 2, 3, 5]),
    ("outside a range", {"number": {"not": {"gte": 2}}}, [0, 1]),
    ("not, without the key", {"nothing": {"not": "x"}}, list(range(12))),
    ("not the document", {"document_id": {"not": ["doc-2", "doc-9"]}, "lang": "zh"}, [6, 7, 8, 10, 11]),
    ("or", [{"lang": "zh"}, {"number": {"lt": 2}}], [0, 1, 6, 7, 8, 9, 10, 11]),
    (
        "or of and and not",
        [{"lang": "zh", "number": {"gt": 9}}, {"lang": {"not": "zh"}, "draft": True}],
        [0, 4, 10, 11],
    ),
    ("or of what overlaps", [{"number": [3, 4]}, {"price": {"gte": 3, "lt": 4}}, {"nothing": "x"}], [3, 4]),
    ("one alternative", [{"number": 3}], [3]),
    ("or anything", [{"number": 3}, {}], list(range(12))),
]


@pytest.mark.parametrize(("where", "expected"), [case[1:] for case in FILTERS], ids=[case[0] for case in FILTERS])
def test_filter(store: Store, where: Where, expected: list[int]) -> None:
    """Each kind of condition lets through just what it says, in each mode."""
    write(store, corpus())
    # Words of every text, so that the sparse search sees all of them too.
    query = " ".join(TEXTS)
    for mode in MODES:
        found = search(store, query, limit=50, mode=mode, where=where)
        assert {f"doc-{i}" for i in expected} == set(found_ids(found)), mode
    passing = list(store.passing(where))
    assert sorted(f"doc-{i}" for i in expected) == sorted(version.document_id for version in passing)
    assert all(1 == version.present for version in passing)


def test_filter_on_what_is_there_or_not(store: Store) -> None:
    """Null and an empty list are as good as no key; a key with a dot is another than one within one."""
    metadata: dict[str, dict[str, Any]] = {
        "without": {},
        "null": {"key": None},
        "empty": {"key": []},
        "one": {"key": "a", "x.y": 1},
        "two": {"key": ["a", "b"], "x": {"y": 2}},
        "three": {"key": ["a", "b", 3], "x.y": 3},
    }
    write(store, [replace(chunk("text", name), metadata=found) for name, found in metadata.items()])
    cases: list[tuple[Where, set[str]]] = [
        ({"key": {"exists": True}}, {"one", "two", "three"}),
        ({"key": {"exists": False}}, {"without", "null", "empty"}),
        ({"x.y": {"exists": True}}, {"two"}),
        ({'"x.y"': {"exists": True}}, {"one", "three"}),
        ({'"x.y"': {"gte": 1, "not": 1}}, {"three"}),
        ({"x.y": {"gte": 1}}, {"two"}),
        ({"key": {"all": ["a", "b"]}}, {"two", "three"}),
        ({"key": {"all": ["a", "b"], "not": 3}}, {"two"}),
        ({"key": {"not": "b", "exists": True}}, {"one"}),
        ([{"key": {"exists": False}}, {"key": {"all": [3]}}], {"without", "null", "empty", "three"}),
    ]
    for where, expected in cases:
        assert expected == set(found_ids(search(store, "text", where=where, mode="sparse"))), where
        assert expected == {version.document_id for version in store.passing(where)}, where


@pytest.mark.parametrize("number", [1764144000.123456, 0.1 + 0.2, 5e-324, 1.7976931348623157e308])
def test_a_number_is_within_its_own_bounds(store: Store, number: float) -> None:
    """Of 17 digits, too, of which the engine keeps 15."""
    write(store, [chunk("text", number=number)])
    for where, found in (
        (number, 1),
        ({"gte": number}, 1),
        ({"lte": number}, 1),
        ({"gte": number, "lte": number}, 1),
        ({"gt": number}, 0),
        ({"lt": number}, 0),
    ):
        assert found == len(search(store, "text", where={"number": where}, mode="sparse")), where


@pytest.mark.parametrize("mode", MODES)
def test_filter_is_applied_in_recall(store: Store, mode: SearchMode) -> None:
    """What passes the filter is found even if hundreds of better hits do not pass it."""
    better = [chunk("blue whale heart", f"better-{i}", kind="common") for i in range(300)]
    wanted = [chunk(f"one heart among many other words of no weight {i}", f"wanted-{i}", kind="rare") for i in range(3)]
    write(store, better + wanted)
    found = search(store, "blue whale heart", limit=2, mode=mode, where={"kind": "rare"})
    assert 2 == len(found)
    assert all(candidate.chunk.metadata["kind"] == "rare" for candidate in found)


@pytest.mark.parametrize("where", [{"tenth": 3}, {"tenth": 3, "third": 1}], ids=["one key", "two keys"])
def test_a_key_that_is_first_used_after_the_index_was_built(store: Store, where: dict[str, Any]) -> None:
    """The graph has no links for it, yet a filter finds what exact search finds: all of the few that pass."""
    rng = np.random.default_rng(5)
    centres, member = rng.standard_normal((20, 64)), rng.integers(20, size=1_000)
    vectors = (centres[member] + rng.standard_normal((1_000, 64))).astype(np.float32)
    tenths, thirds = rng.integers(10, size=1_000).tolist(), rng.integers(3, size=1_000).tolist()
    chunks = [
        chunk("text", f"doc-{i}", tenth=tenth, third=third)
        for i, (tenth, third) in enumerate(zip(tenths, thirds, strict=True))
    ]
    store.upsert(chunks, vectors)
    store.optimize()
    wanted = {item.id for item in chunks if all(item.metadata[key] == value for key, value in where.items())}
    shares = []
    for vector in vectors[:20]:
        found = store.search("", vector, limit=len(wanted), mode="dense", where=where)
        shares.append(len(wanted & {candidate.chunk.id for candidate in found}) / len(wanted))
    assert float(np.mean(shares)) >= 0.99


MIXED = ["a", 3, True, "2024-01-31", 2**60 + 1, None, 1.5, ["a", 3, "2025-01-01T18:00:00Z"]]
"""Values of one key, in documents 0 to 7."""

MIXED_FILTERS: dict[str, tuple[Any, list[int]]] = {
    "word": ("a", [0, 7]),
    "number": (3, [1, 7]),
    "number range": ({"gt": 1, "lt": 2**40}, [1, 6, 7]),
    "true": (True, [2]),
    "date range": ({"gte": "2024-01-01"}, [3, 7]),
    "large integer": (2**60 + 1, [4]),
    "any of mixed": (["a", 3, True], [0, 1, 2, 7]),
}


def test_one_key_filtered_in_two_ways(store: Store) -> None:
    """A field has one index, made for the filter that comes first; what comes after it finds just the same."""
    pairs = list(permutations(MIXED_FILTERS, 2))
    made = [chunk("text", f"doc-{i}") for i in range(len(MIXED))]
    keys = [" ".join(pair) for pair in pairs]
    write(store, [replace(one, metadata=dict.fromkeys(keys, value)) for one, value in zip(made, MIXED, strict=True)])
    for pair in pairs:
        for name in (*pair, pair[0]):
            wanted, expected = MIXED_FILTERS[name]
            found = search(store, "text", where={" ".join(pair): wanted}, mode="sparse")
            assert [f"doc-{i}" for i in expected] == sorted(found_ids(found)), (pair, name)


@pytest.mark.parametrize("time", ["2024-05-01 10:30", "2024-05-01T10:30", "2024-05-01T18:30:00+08:00"])
def test_times_as_people_write_them_are_in_ranges(store: Store, time: str) -> None:
    """Without seconds, on either side; in UTC where there is no zone."""
    write(store, [chunk("text", "before", at="2024-05-01 10:29:59"), chunk("text", "at", at=time)])
    assert ["at"] == found_ids(search(store, "text", where={"at": {"gte": "2024-05-01 10:30"}}))
    assert ["before"] == found_ids(search(store, "text", where={"at": {"lt": "2024-05-01T10:30"}}))


@pytest.mark.parametrize(
    "where",
    [{"key": {}}, {"key": {"near": 1}}, {"key": None}, {"key": {"gt": "soon"}}, {"key": {"gt": 1, "lt": "2024-01-01"}}],
    ids=["no bounds", "unknown operator", "none", "no date", "mixed bounds"],
)
def test_wrong_filter_names_the_key(empty: Store, where: dict[str, Any]) -> None:
    """A condition that cannot be understood is an error, even before there is a collection."""
    with pytest.raises(SettingsError, match="key"):
        search(empty, "anything", where=where)


# ------------------------------------------------------------------ threads, and each other


def test_eight_threads(store: Store) -> None:
    """Writers and readers may share a store: nothing fails, and all that was written is there."""
    write(store, corpus())

    def work(thread: int) -> int:
        for i in range(5):
            if thread % 2:
                write(store, [chunk(f"thread {thread} text {i}", f"doc {thread} {i}", thread=thread)])
            else:
                assert "doc-0" == found_ids(search(store, "steam engine looms"))[0]
                assert [] != list(store.versions(["doc-0"]))
        return thread

    with ThreadPoolExecutor(8) as pool:
        assert list(range(8)) == list(pool.map(work, range(8)))
    assert StoreCount(len(TEXTS) + 20, len(TEXTS) + 20) == store.count()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fusion", get_args(HybridFusion))
def test_same_ranking_as_the_embedded_engine(
    store: Store, mode: SearchMode, fusion: HybridFusion, tmp_path: Path
) -> None:
    """The same data gives the same order and the same scores on every store."""
    other = EdgeStore(tmp_path / "other")
    other.ensure_ready(fingerprint(other))
    # Vectors without ties: which of two equal ones comes first in a list is the engine's choice, and RRF shows it.
    rng = np.random.default_rng(7)
    vectors = rng.standard_normal((len(TEXTS), 64)).astype(np.float32)
    for one in (store, other):
        one.upsert(corpus(), vectors)
    for query in ("the heart of a blue whale", "三十年战争 1648", "sugar water 光合作用"):
        vector = rng.standard_normal(64).astype(np.float32)
        ours = store.search(query, vector, limit=50, mode=mode, fusion=fusion)
        theirs = other.search(query, vector, limit=50, mode=mode, fusion=fusion)
        assert found_ids(theirs) == found_ids(ours)
        assert [c.score for c in theirs] == pytest.approx([c.score for c in ours], rel=1e-4, abs=1e-6)
    other.close()
