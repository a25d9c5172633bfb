"""The server store against real sockets: what it says when the server is away, busy, or something else."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pipeline.errors import SettingsError, StoreError
from pipeline.retrying import RetryPolicy
from pipeline.stores.connection import connect
from pipeline.stores.payload import to_payload
from pipeline.stores.server import ServerStore
from pipeline.types import Chunk, Fingerprint
from tests.fakes import FakeEmbedder

EMBEDDER = FakeEmbedder(dimension=8)
KEY = "very-secret-key"
FINGERPRINT = Fingerprint("fake", 8, chunk_tokens=256, chunk_overlap=32, bm25="test")

Answer = tuple[int, Any]
Respond = Callable[[str, str], Answer]


class Loopback:
    """An HTTP server on a free port that answers as it is told and notes what it was asked."""

    def __init__(self) -> None:
        self.respond: Respond = lambda method, path: (404, {"status": {"error": "not set"}})
        self.requests: list[tuple[str, str, Any]] = []
        self.keys: set[str | None] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                outer.requests.append((self.command, self.path, json.loads(body) if body else None))
                outer.keys.add(self.headers.get("api-key"))
                status, answer = outer.respond(self.command, self.path)
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = handle_any  # noqa: N815

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Loopback]:
    loopback = Loopback()
    yield loopback
    loopback.close()


@pytest.fixture
def store(server: Loopback) -> Iterator[ServerStore]:
    retry = RetryPolicy(tries=3, sleep=lambda _: None)
    made = ServerStore(connect(server.url, api_key=KEY, timeout=5), "documents", retry=retry)
    yield made
    made.close()


def ok(result: Any) -> Answer:
    return 200, {"result": result, "status": "ok", "time": 0.001}


NOTHING = ok([{"points": []}, {"points": []}])
"""What a hybrid search finds in an empty collection."""


def refused(status: int, error: str) -> Answer:
    return status, {"status": {"error": error}, "time": 0.001}


def info(**changes: Any) -> Answer:
    """What a server answers about a collection of ours."""
    config = {
        "params": {"vectors": {"dense": {"size": 8, "distance": "Cosine"}}},
        "hnsw_config": {"m": 16, "ef_construct": 200, "full_scan_threshold": 10000},
        "optimizer_config": {
            "deleted_threshold": 0.2,
            "vacuum_min_vector_number": 1000,
            "default_segment_number": 0,
            "flush_interval_sec": 5,
        },
        "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0},
        "metadata": {"two_stage_rag": FINGERPRINT.to_dict()},
    } | changes
    return ok(
        {
            "status": "green",
            "optimizer_status": "ok",
            "segments_count": 1,
            "points_count": 0,
            "config": config,
            "payload_schema": {},
        }
    )


def search(store: ServerStore, **options: Any) -> Any:
    return store.search("text", EMBEDDER.embed_query("text"), limit=5, **options)


def chunks(count: int) -> list[Chunk]:
    return [Chunk(f"doc-{i}", "v1", 0, 1, "text", "", "source") for i in range(count)]


def write(store: ServerStore, count: int) -> None:
    store.upsert(chunks(count), EMBEDDER.embed_documents(["text"] * count))


def collection_is_there(answers: dict[str, Answer]) -> Respond:
    """Answers by the end of the path; the collection itself is one of ours."""

    def respond(method: str, path: str) -> Answer:
        path = path.partition("?")[0]
        for end, answer in answers.items():
            if path.endswith(end):
                return answer
        return info()

    return respond


def indexed(kind: str | None, answer: Answer | None = None) -> Respond:
    """A collection of ours whose ``metadata.day`` has an index of this kind; making one meets with ``answer``."""
    status, there = info()
    if kind:
        there["result"]["payload_schema"] = {"metadata.day": {"data_type": kind, "points": 1}}
    answers = {"/query/batch": NOTHING, "/index": answer or ok({"operation_id": 1, "status": "completed"})}

    def respond(method: str, path: str) -> Answer:
        path = path.partition("?")[0]
        return next((found for end, found in answers.items() if path.endswith(end)), (status, there))

    return respond


# ------------------------------------------------------------------ what the message says


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refused(401, "Must provide an API key"), ["API key", "401", "RAG_QDRANT_API_KEY"]),
        (refused(403, "Write access required"), ["API key", "403", "Write access required", "RAG_QDRANT_API_KEY"]),
        ((404, b"<html>nginx</html>"), ["nothing of Qdrant's", "RAG_QDRANT_URL"]),
        ((301, b""), ["final address"]),
        (refused(400, "Index required but not found for metadata.lang"), ["refused", "400", "metadata.lang"]),
        (refused(500, "panic in shard 3"), ["500", "panic in shard 3"]),
        ((503, b"upstream down"), ["503", "upstream down"]),
        ((429, {"status": {"error": "slow down"}}), ["429", "slow down"]),
        ((200, b"<html>Welcome</html>"), ["not one of Qdrant's", "RAG_QDRANT_URL"]),
        ((200, {"hello": "world"}), ["not one of Qdrant's"]),
    ],
    ids=["401", "403", "404", "301", "400", "500", "503", "429", "html", "other json"],
)
def test_answers_in_plain_words(server: Loopback, store: ServerStore, answer: Answer, words: list[str]) -> None:
    """Each refusal says what was tried, where, and what to check; the key is sent but never shown."""
    server.respond = lambda method, path: answer
    for request in (lambda: search(store), store.fingerprint, store.count, lambda: list(store.versions())):
        with pytest.raises(StoreError) as caught:
            request()
        message = str(caught.value)
        assert [] == [word for word in [*words, server.url, "collection documents"] if word not in message]
        assert KEY not in message
        assert KEY not in str(caught.value.__cause__)
    assert {KEY} == server.keys


def test_retry_after_is_told(server: Loopback) -> None:
    """A server that says when to come again is quoted."""

    class Limited(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(429)
            self.send_header("retry-after", "7")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    limited = ThreadingHTTPServer(("127.0.0.1", 0), Limited)
    thread = threading.Thread(target=limited.serve_forever)
    thread.start()
    store = ServerStore(connect(f"http://127.0.0.1:{limited.server_address[1]}"), "documents")
    with pytest.raises(StoreError, match="try again in 7 s"):
        store.fingerprint()
    store.close()
    limited.shutdown()
    limited.server_close()
    thread.join()


def test_nothing_listens() -> None:
    """A server that is not running is told at once, with its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    store = ServerStore(connect(url, api_key=KEY), "documents")
    start = time.monotonic()
    with pytest.raises(StoreError, match=f"{url}: no connection .*is Qdrant running there"):
        search(store)
    assert time.monotonic() - start < 5
    store.close()


def test_time_out() -> None:
    """A server that takes the request and stays silent is given up after the time-out."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        store = ServerStore(connect(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=1), "documents")
        start = time.monotonic()
        with pytest.raises(StoreError, match="no answer in time"):
            search(store)
        assert 0.9 < time.monotonic() - start < 5
        store.close()


def test_foreign_collection_is_left_alone(server: Loopback, store: ServerStore) -> None:
    """A collection that someone else made is not taken for an empty one of ours."""
    server.respond = lambda method, path: info(metadata=None)
    with pytest.raises(StoreError, match="was not made by this program"):
        store.ensure_ready(FINGERPRINT)
    assert {"GET"} == {method for method, _, _ in server.requests}


@pytest.mark.parametrize(
    "url",
    [
        "",
        " ",
        "ftp://localhost",
        "http://",
        "http://user:secret@localhost:6333",
        "http://a b",
        "http://[::1",
        "x:99999",
        "https//user:secret@localhost",
        "ftp://localhost?api_key=secret",
    ],
)
def test_wrong_address_is_a_settings_error(url: str) -> None:
    """An address that cannot be one, or that holds a password, is refused; the password is not shown."""
    with pytest.raises(SettingsError, match="RAG_QDRANT_URL") as caught:
        connect(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["sk-secret 1", "sk-secret\u00fc", "sk-\nsecret"])
def test_a_key_that_no_header_can_carry_is_not_shown(key: str) -> None:
    """The message names the variable; that of the HTTP library would quote the key, in logs too."""
    with pytest.raises(SettingsError, match="RAG_QDRANT_API_KEY") as caught:
        connect("http://localhost:1", api_key=key)
    assert "secret" not in str(caught.value)


def test_white_space_around_a_key_is_no_part_of_it(server: Loopback) -> None:
    """As a secret has it that was made from a file."""
    retry = RetryPolicy(tries=1, sleep=lambda _: None)
    store = ServerStore(connect(server.url, api_key=f"{KEY}\n"), "documents", retry=retry)
    with pytest.raises(StoreError):
        store.count()
    store.close()
    assert {KEY} == server.keys


def test_address_without_scheme() -> None:
    """host:port is enough, and connecting makes no request."""
    store = ServerStore(connect("localhost:1"), "documents")
    assert "collection documents at http://localhost:1" == store.name
    store.close()


# ------------------------------------------------------------------ what it does


def test_missing_collection_is_empty(server: Loopback, store: ServerStore) -> None:
    """Qdrant's own 404 means that nothing was ingested yet."""
    server.respond = lambda method, path: refused(404, "Not found: Collection `documents` doesn't exist!")
    assert [] == search(store, where={"lang": "en"})
    assert None is store.fingerprint()
    assert [] == list(store.versions())
    assert (0, 0) == (store.count().documents, store.count().chunks)


def test_write_is_tried_three_times(server: Loopback, store: ServerStore) -> None:
    """A write survives faults that pass, and gives up after the third."""
    answers = iter([refused(503, "starting"), refused(429, "busy"), ok({"operation_id": 1, "status": "completed"})])
    server.respond = lambda method, path: next(answers) if "/points" in path else info()
    write(store, 1)
    server.respond = collection_is_there({"/points": refused(503, "starting")})
    server.requests.clear()
    with pytest.raises(StoreError, match="503: starting"):
        write(store, 1)
    assert 3 == sum(method == "PUT" for method, _, _ in server.requests)


@pytest.mark.parametrize("status", [400, 401, 403])
def test_refused_write_is_not_repeated(server: Loopback, store: ServerStore, status: int) -> None:
    """What cannot get better is not tried again."""
    server.respond = collection_is_there({"/points": refused(status, "no")})
    with pytest.raises(StoreError):
        write(store, 1)
    assert 1 == sum("/points" in path for _, path, _ in server.requests)


def test_search_is_not_repeated(server: Loopback, store: ServerStore) -> None:
    """A query fails at once: the one who asked can ask again."""
    server.respond = lambda method, path: refused(503, "starting")
    with pytest.raises(StoreError):
        search(store)
    assert 1 == len(server.requests)


def test_large_upsert_is_split(server: Loopback, store: ServerStore) -> None:
    """Requests stay small, and each waits until it is applied."""
    server.respond = collection_is_there({"/points": ok({"operation_id": 1, "status": "completed"})})
    write(store, 300)
    writes = [(path, body) for _, path, body in server.requests if "/points" in path]
    assert [44, 128, 128] == sorted(len(body["points"]) for _, body in writes)
    assert {item.id for item in chunks(300)} == {point["id"] for _, body in writes for point in body["points"]}
    assert all("wait=true" in path for path, _ in writes)


def test_filtered_key_gets_its_index_once(server: Loopback, store: ServerStore) -> None:
    """The first search with a filter makes the index of the key's type, later ones do not ask again."""
    server.respond = collection_is_there(
        {"/query/batch": NOTHING, "/index": ok({"operation_id": 1, "status": "completed"})}
    )
    for _ in range(2):
        search(store, where={"lang": "en", "year": {"gte": 2000}, "draft": True, "day": {"lt": "2024-01-01"}})
    made = [body for _, path, body in server.requests if "/index" in path]
    assert [
        ("metadata.lang", "keyword"),
        ("metadata.year", "float"),
        ("metadata.draft", "bool"),
        ("metadata.day", "datetime"),
    ] == [(body["field_name"].replace('"', ""), body["field_schema"]) for body in made]


def test_read_only_key_searches_without_index(server: Loopback, store: ServerStore) -> None:
    """A key that may not make the index still gets its answer, and does not try each time."""
    server.respond = collection_is_there({"/query/batch": NOTHING, "/index": refused(403, "read only")})
    for _ in range(2):
        assert [] == search(store, where={"lang": "en"})
    assert 1 == sum("/index" in path for _, path, _ in server.requests)


def test_an_index_that_answers_wrongly_is_replaced_once(server: Loopback, store: ServerStore) -> None:
    """One for dates, asked for numbers, becomes one for words, which stays whatever comes next."""
    server.respond = indexed("datetime")
    for _ in range(2):
        for wanted in ({"gt": "2024-01-01"}, ["a", 3], {"gt": "2024-01-01"}):
            search(store, where={"day": wanted})
    assert [("metadata.day", "keyword")] == [
        (body["field_name"], body["field_schema"]) for _, path, body in server.requests if "/index" in path
    ]


def test_what_others_index_is_seen(server: Loopback, store: ServerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a change, which would replace their index, and after a while."""

    def made() -> list[str]:
        return [body["field_schema"] for _, path, body in server.requests if "/index" in path]

    server.respond = indexed(None)
    assert [] == search(store)
    server.respond = indexed("datetime")
    search(store, where={"day": {"gt": 1}})
    assert ["keyword"] == made()
    server.respond = indexed("float")
    search(store, where={"day": {"gt": "2024-01-01"}})
    assert ["keyword"] == made()
    monkeypatch.setattr("pipeline.stores.server._LOOK_AGAIN_S", 0)
    search(store, where={"day": {"gt": "2024-01-01"}})
    assert ["keyword", "keyword"] == made()


@pytest.mark.parametrize("answer", [refused(403, "read only"), refused(503, "busy")], ids=["denied", "busy"])
def test_an_index_that_cannot_be_replaced_is_no_wrong_answer(
    server: Loopback, store: ServerStore, answer: Answer
) -> None:
    """Better none; other filters on the key go on."""
    server.respond = indexed("float", answer)
    for _ in range(2):
        with pytest.raises(StoreError, match="make an index"):
            search(store, where={"day": {"gt": "2024-01-01"}})
        assert [] == search(store, where={"day": {"gt": 1}})


def test_request_fused_by_the_server(server: Loopback, store: ServerStore) -> None:
    """Both lists are at least 100 deep, filtered themselves, and the HNSW search is broader than the list is deep."""
    server.respond = collection_is_there({"/query/batch": ok([{"points": []}]), "/index": refused(403, "read only")})
    search(store, where={"source": "a.txt"}, fusion="rrf")
    (body,) = next(body for _, path, body in server.requests if "/query/batch" in path)["searches"]
    condition = {"must": [{"key": "source", "match": {"any": ["a.txt"]}}]}
    assert ["dense", "bm25"] == [prefetch["using"] for prefetch in body["prefetch"]]
    assert [100, 100] == [prefetch["limit"] for prefetch in body["prefetch"]]
    assert [condition] * 3 == [part["filter"] for part in [*body["prefetch"], body]]
    assert all(prefetch["params"]["hnsw_ef"] >= 400 for prefetch in body["prefetch"])
    assert all(prefetch["params"]["acorn"]["enable"] for prefetch in body["prefetch"])
    assert {"rrf": {"k": 60}} == body["query"]
    assert 5 == body["limit"]


def test_a_search_stays_with_one_collection(server: Loopback, store: ServerStore) -> None:
    """Also if the program's own reindex switches between two of its requests."""
    there = chunks(3)
    point = [{"id": item.id, "version": 1, "score": 0.9 - i / 10} for i, item in enumerate(there)]
    texts = ok([{"id": item.id, "payload": to_payload(item)} for item in there])
    current = ["documents.2"]

    def respond(method: str, path: str) -> Answer:
        path = path.partition("?")[0]
        if path.endswith("/query/batch"):
            if current == ["documents.2"]:
                current[0] = "documents.3"
                store.follow()
            return ok([{"points": point}, {"points": point}])
        if path.endswith("/points"):
            return texts
        return info(metadata={"two_stage_rag": FINGERPRINT.to_dict() | {"generation": current[0]}})

    server.respond = respond
    assert 3 == len(search(store))
    asked = [path.split("/")[2] for _, path, _ in server.requests if "/points" in path]
    assert ["documents.2"] * 2 == asked
    assert 3 == len(search(store))
    assert "documents.3" == [path.split("/")[2] for _, path, _ in server.requests if "/points" in path][-1]


def test_requests_of_a_convex_search(server: Loopback, store: ServerStore) -> None:
    """Both lists at once, then what one of them lacks, exactly, then texts, and more texts where some are gone."""
    there = chunks(8)
    point = [{"id": item.id, "version": 1, "score": 0.9 - i / 10} for i, item in enumerate(there)]
    lists = iter([ok([{"points": point[:7]}, {"points": point[6:]}]), ok([{"points": point[7:]}, {"points": []}])])
    texts = iter([ok([{"id": item.id, "payload": to_payload(item)} for item in (there[0], there[6])]), ok([])])
    known = collection_is_there({"/index": refused(403, "read only")})

    def respond(method: str, path: str) -> Answer:
        if "/query/batch" in path:
            return next(lists)
        return next(texts) if path.partition("?")[0].endswith("/points") else known(method, path)

    server.respond = respond
    assert [there[0].id, there[6].id] == [found.chunk.id for found in search(store, where={"source": "a.txt"})]
    first, second = (body["searches"] for _, path, body in server.requests if "/query/batch" in path)
    condition = {"must": [{"key": "source", "match": {"any": ["a.txt"]}}]}
    assert [("dense", 100, condition), ("bm25", 100, condition)] == [
        (one["using"], one["limit"], one["filter"]) for one in first
    ]
    assert all(one["params"]["hnsw_ef"] >= 400 and one["params"]["acorn"]["enable"] for one in first)
    lacking = [{there[7].id}, {item.id for item in there[:6]}]
    assert lacking == [set(one["filter"]["must"][0]["has_id"]) for one in second]
    assert all(one["params"]["exact"] and one["params"]["quantization"]["ignore"] for one in second)
    assert [5, 3] == [
        len(body["ids"]) for _, path, body in server.requests if path.partition("?")[0].endswith("/points")
    ]
