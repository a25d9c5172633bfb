"""How a collection on a server is made, loaded and kept in line, over real sockets (:mod:`tests.qdrant_rest`)."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from pipeline.core import Pipeline
from pipeline.errors import StoreUnavailableError
from pipeline.retrying import RetryPolicy
from pipeline.stores.connection import connect
from pipeline.stores.server import ServerStore
from pipeline.stores.server_settings import DEFERRED_KIB
from pipeline.stores.storage import INDEXING_KIB, Cluster, Storage
from pipeline.types import Document
from tests.fakes import FakeEmbedder
from tests.loopback import Loopback, Reply, Request
from tests.qdrant_rest import QdrantRest

DOCUMENTS = [Document(id=f"d{i}", text=f"text number {i}") for i in range(5)]
INT8 = {"scalar": {"type": "int8", "quantile": 0.99, "always_ram": True}}


def store(server: Loopback, **options: Any) -> ServerStore:
    return ServerStore(connect(server.url, timeout=5), "documents", retry=RetryPolicy(tries=1), **options)


def ingest(server: Loopback, documents: list[Document] = DOCUMENTS, **options: Any) -> list[str]:
    """What the ingest said."""
    messages: list[str] = []
    with Pipeline(embedder=FakeEmbedder(dimension=16), store=store(server, **options)) as rag:
        rag.ingest(documents, progress=lambda step: messages.append(step.message) if step.message else None)
    return messages


def threshold(qdrant: QdrantRest) -> int:
    found: int = qdrant.settings["documents"]["optimizer_config"]["indexing_threshold"]
    return found


def patches(server: Loopback) -> list[Any]:
    return [request.json for request in server.requests if request.method == "PATCH"]


def creations(server: Loopback) -> list[Any]:
    return [r.json for r in server.requests if r.method == "PUT" and r.path.endswith("/documents")]


# ------------------------------------------------------------------ bulk load


def test_a_new_collection_is_loaded_without_index_which_is_built_at_the_end() -> None:
    """Payload indexes come first, as they shape the graph; the threshold comes back after the last chunk."""
    qdrant, seen = QdrantRest(), list[int]()

    def respond(request: Request) -> Reply:
        if "/points?" in request.path:
            seen.append(threshold(qdrant))
        return qdrant(request)

    with Loopback(respond) as server:
        said = ingest(server)
        steps = [
            (request.method, request.path.partition("?")[0].rpartition("/")[2])
            for request in server.requests
            if request.method in ("PUT", "PATCH")
        ]
    assert {DEFERRED_KIB} == set(seen)
    assert INDEXING_KIB == threshold(qdrant)
    assert steps.index(("PUT", "index")) < steps.index(("PUT", "points")) < steps.index(("PATCH", "documents"))
    assert ["the server begins to build its index"] == said


def test_a_cut_off_load_does_not_leave_the_index_off_for_ever() -> None:
    """The next ingest turns it on, even if it finds nothing to write; the one after it changes nothing."""
    qdrant = QdrantRest()

    def respond(request: Request) -> Reply:
        # All is written when the connection is lost for good.
        return Reply(fault="reset") if request.method == "PATCH" else qdrant(request)

    with Loopback(respond) as server, pytest.raises(StoreUnavailableError):
        ingest(server)
    assert DEFERRED_KIB == threshold(qdrant)
    for expected in (1, 0):
        with Loopback(qdrant) as server:
            ingest(server)
            assert expected == len(patches(server))
            assert 0 == sum("/points?" in request.path for request in server.requests)
        assert INDEXING_KIB == threshold(qdrant)


def test_verify_with_repair_turns_the_index_on() -> None:
    """For those who have no more to ingest."""
    qdrant = QdrantRest()
    with Loopback(qdrant) as server:
        ingest(server)
        qdrant.settings["documents"]["optimizer_config"]["indexing_threshold"] = DEFERRED_KIB
        with Pipeline(embedder=FakeEmbedder(dimension=16), store=store(server)) as rag:
            assert [] == rag.verify(repair=True).problems
    assert INDEXING_KIB == threshold(qdrant)


def test_a_query_says_that_there_is_no_index(caplog: pytest.LogCaptureFixture) -> None:
    """Where the collection is so large that it matters. It leaves it so: an ingest may be under way."""
    qdrant = QdrantRest()

    def respond(request: Request) -> Reply:
        answer = qdrant(request)
        if request.method == "GET" and answer.status == 200:
            answer.json["result"]["points_count"] = 1_000_000
        return answer

    with Loopback(respond) as server:
        ingest(server)
        for there, warnings in ((INDEXING_KIB, 0), (DEFERRED_KIB, 1)):
            qdrant.settings["documents"]["optimizer_config"]["indexing_threshold"] = there
            caplog.clear()
            store(server).fingerprint()
            assert warnings == sum("no index yet" in record.message for record in caplog.records)
            assert there == threshold(qdrant)


def test_many_chunks_are_written_by_requests_side_by_side() -> None:
    """All of them arrive, whichever comes first; one that fails is an error of the whole write."""
    qdrant = QdrantRest()
    many = [Document(id=f"d{i}", text=f"text number {i}") for i in range(300)]
    with Loopback(qdrant) as server:
        ingest(server, many)
        assert server.connections > 1
    assert 300 == qdrant.client.count("documents").count

    def respond(request: Request) -> Reply:
        writes = [item for item in server.requests if "/points?" in item.path]
        return Reply(503) if "/points?" in request.path and len(writes) == 3 else qdrant(request)

    with Loopback(respond) as server, pytest.raises(StoreUnavailableError, match="503"):
        ingest(server, [Document(id=f"e{i}", text=f"other text {i}") for i in range(500)])  # four requests


# ------------------------------------------------------------------ how it is kept


def test_nothing_is_sent_that_was_not_asked_for() -> None:
    """The server's own defaults hold."""
    with Loopback(QdrantRest()) as server:
        ingest(server)
        (made,) = creations(server)
    sent = {name for name, value in made.items() if value is not None}
    assert {"vectors", "sparse_vectors", "hnsw_config", "optimizers_config", "metadata"} == sent
    assert {"size": 16, "distance": "Cosine"} == {k: v for k, v in made["vectors"]["dense"].items() if v is not None}
    assert {"modifier": "idf"} == {k: v for k, v in made["sparse_vectors"]["bm25"].items() if v is not None}


def test_a_collection_is_made_as_asked_for() -> None:
    """Quantization, place and spread, in the words of Qdrant's interface."""
    options: dict[str, Any] = {"storage": Storage("int8", on_disk=True), "cluster": Cluster(4, 3, 2)}
    with Loopback(QdrantRest()) as server:
        ingest(server, **options)
        (made,) = creations(server)
        ingest(server, **options)
        assert [["optimizers_config"]] == [list(_given(body)) for body in patches(server)]
    assert INT8 == _given(made["quantization_config"])
    assert made["vectors"]["dense"]["on_disk"] is True
    assert made["sparse_vectors"]["bm25"]["index"]["on_disk"] is True
    assert made["on_disk_payload"] is True
    assert (4, 3, 2) == (made["shard_number"], made["replication_factor"], made["write_consistency_factor"])


def test_an_existing_collection_is_brought_into_line() -> None:
    """By the next ingest, which says so; what is not asked for stays as it is."""
    qdrant = QdrantRest()
    with Loopback(qdrant) as server:
        ingest(server)
        said = ingest(server, storage=Storage("int8", on_disk=True))
        assert ["the server stores the vectors anew (quantization none -> int8, vectors memory -> disk)"] == said
        assert [] == ingest(server, storage=Storage())
        assert [] == ingest(server, storage=Storage("int8"))
        assert INT8 == _given(qdrant.settings["documents"]["quantization_config"])
        assert qdrant.settings["documents"]["params"]["vectors"]["dense"]["on_disk"] is True
        said = ingest(server, storage=Storage("none", on_disk=False))
        assert ["the server stores the vectors anew (quantization int8 -> none, vectors disk -> memory)"] == said
        assert [] == ingest(server, storage=Storage("none", on_disk=False))
    assert qdrant.settings["documents"]["quantization_config"] is None


def test_a_key_that_may_not_change_settings_still_ingests(caplog: pytest.LogCaptureFixture) -> None:
    """All is written, and the log says what could not be changed."""
    qdrant = QdrantRest()

    def respond(request: Request) -> Reply:
        if request.method == "PATCH":
            return Reply(403, {"status": {"error": "Global manage access is required"}})
        return qdrant(request)

    with Loopback(respond) as server:
        ingest(server, storage=Storage("int8"))
    assert 5 == qdrant.client.count("documents").count
    assert any("manage access" in r.message and "optimizers_config" in r.message for r in caplog.records)


def test_another_spread_is_told_and_left(caplog: pytest.LogCaptureFixture) -> None:
    """Shards and replicas are chosen when a collection is made."""
    with Loopback(QdrantRest()) as server:
        ingest(server, cluster=Cluster(shards=2))
        caplog.clear()
        ingest(server, cluster=Cluster(shards=2))
        assert [] == [record for record in caplog.records if record.levelno >= logging.WARNING]
        ingest(server, cluster=Cluster(shards=6, replication=1))
    assert ["RAG_QDRANT_SHARDS=6 but it has 2"] == [
        record.message.partition("made: ")[2].partition(";")[0]
        for record in caplog.records
        if "stays" in record.message
    ]


@pytest.mark.parametrize("exact", [False, True])
def test_candidates_are_rescored(exact: bool) -> None:
    """The copies find more than is asked for and the vectors decide; an exact search takes no notice of the copies."""
    found = Reply(json={"result": [{"points": []}], "status": "ok", "time": 0.1})
    qdrant = QdrantRest()
    asked: list[Request] = []

    def respond(request: Request) -> Reply:
        if not request.path.startswith("/collections/documents/points/query"):
            return qdrant(request)
        asked.append(request)
        return found

    with Loopback(respond) as server:
        ingest(server)
        made = store(server, storage=Storage(oversampling=3.0))
        made.search("text", FakeEmbedder(dimension=16).embed_query("text"), limit=5, mode="dense", exact=exact)
        made.close()
    (request,) = asked[0].json["searches"]
    assert 1 == len(asked)
    assert {"ignore": exact, "rescore": True, "oversampling": 3.0} == request["params"]["quantization"]


def _given(body: Any) -> Any:
    """Without the nulls that the client sends for what is not set."""
    if isinstance(body, dict):
        return {name: _given(value) for name, value in body.items() if value is not None}
    return body
