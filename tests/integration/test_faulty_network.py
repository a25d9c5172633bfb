"""An ingest into a server behind a network with faults: it waits, gives up, goes on, and ends as one without faults.

There is no Qdrant server here: the requests go over real sockets to the client's local mode (:mod:`tests.qdrant_rest`).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from pipeline.core import Pipeline
from pipeline.errors import StoreError, StoreUnavailableError
from pipeline.retrying import RetryPolicy
from pipeline.stores.connection import connect
from pipeline.stores.server import ServerStore
from pipeline.types import Document
from tests.fakes import FakeEmbedder
from tests.loopback import Loopback, Reply, Request, Respond
from tests.qdrant_rest import QdrantRest

Points = dict[str, Any]

OLD = [Document(id=f"d{i}", text="old " * (20 + 15 * (i % 12))) for i in range(120)]
NEW = [Document(id=f"d{i}", text=f"{i} new " * (10 + 12 * (i % 9))) if i % 2 else OLD[i] for i in range(110)]


@dataclass
class Clock:
    """Time that passes only in waits, and for each thread by itself: two that wait at once do not wait twice."""

    now: float = 0.0
    waits: list[float] = field(default_factory=list)
    own: threading.local = field(default_factory=threading.local)

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.own.now = self.time() + seconds
        self.now = max(self.now, self.own.now)

    def time(self) -> float:
        return float(getattr(self.own, "now", self.now))

    def policy(self, **options: Any) -> RetryPolicy:
        options = {"tries": 1_000, "deadline_s": 120.0} | options
        return RetryPolicy(**options, sleep=self.sleep, clock=self.time)


@pytest.fixture(autouse=True, scope="module")
def small_batches() -> Iterator[None]:
    """Many requests for little data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.ingestion.run._EMBED_CHUNKS", 48)
        patch.setattr("pipeline.stores.server._WRITE_BATCH", 20)
        patch.setattr("pipeline.stores.server._READ_BATCH", 50)
        yield


def ingest(url: str, documents: list[Document], retry: RetryPolicy) -> None:
    store = ServerStore(connect(url, timeout=1), "documents", retry=retry)
    with Pipeline(embedder=FakeEmbedder(dimension=16), store=store, chunk_tokens=32, chunk_overlap=0) as rag:
        rag.ingest(documents)


def points(qdrant: QdrantRest) -> Points:
    records, _ = qdrant.client.scroll("documents", limit=100_000, with_payload=True, with_vectors=True)
    return {str(record.id): (record.payload, _rounded(record.vector)) for record in records}


def _rounded(vectors: Any) -> tuple[list[float], Any]:
    """Local mode normalizes with numpy, whose last digit is not always the same."""
    return [round(x, 5) for x in vectors["dense"]], vectors["bm25"]


@pytest.fixture(scope="module")
def undisturbed(small_batches: None) -> tuple[Points, Points]:
    """The collection after the old and after the new documents, without faults."""
    qdrant, found = QdrantRest(), []
    with Loopback(qdrant) as server:
        for documents in (OLD, NEW):
            ingest(server.url, documents, Clock().policy())
            found.append(points(qdrant))
    return found[0], found[1]


def with_faults(qdrant: QdrantRest, fault: Callable[[Request], Reply | str | None]) -> Respond:
    """The server, but where ``fault`` names a Reply it is sent instead, and where it names a fault of the connection
    the request is carried out and its answer is lost."""

    def respond(request: Request) -> Reply:
        found = fault(request)
        if isinstance(found, Reply):
            return found
        answer = qdrant(request)
        return answer if found is None else replace(answer, fault=found)  # type: ignore[arg-type]

    return respond


BEFORE: list[Reply | str] = [
    Reply(500),
    Reply(503),
    Reply(429),
    Reply(502, body=b"<html>bad gateway"),
    Reply(fault="reset"),
]
AFTER: list[Reply | str] = ["reset", "cut"]


@pytest.mark.parametrize("seed", range(5))
def test_faults_of_every_kind_change_nothing(undisturbed: tuple[Points, Points], seed: int) -> None:
    """A third of all requests is refused, cut off, or carried out without an answer: the collection is the same."""
    random_ = random.Random(seed)
    hit: list[str] = []

    def fault(request: Request) -> Reply | str | None:
        # The first contact is not tried again: that a server is not there is said at once.
        if request.method == "GET" or random_.random() > 0.35:
            return None
        chosen = random_.choice([*BEFORE, *AFTER])
        hit.append(str(chosen))
        return chosen

    qdrant = QdrantRest()
    with Loopback(with_faults(qdrant, fault)) as server:
        for documents, wanted in zip((OLD, NEW), undisturbed, strict=True):
            ingest(server.url, documents, Clock().policy(deadline_s=1e6))
            assert wanted == points(qdrant)
    assert len(set(hit)) > 4


@pytest.mark.parametrize("kind", ["stall", "stall-body"])
def test_a_stalled_request_is_given_up_and_made_again(undisturbed: tuple[Points, Points], kind: str) -> None:
    """After the time-out of one request; whether it was carried out does not matter."""
    qdrant, stalled = QdrantRest(), list[str]()

    def fault(request: Request) -> Reply | str | None:
        if "/points?" in request.path and not stalled:
            stalled.append(request.path)
            return kind
        return None

    with Loopback(with_faults(qdrant, fault)) as server:
        ingest(server.url, OLD, Clock().policy())
    assert (1, undisturbed[0]) == (len(stalled), points(qdrant))


def test_a_truncated_answer_is_asked_for_again(undisturbed: tuple[Points, Points]) -> None:
    """Valid HTTP around half of the JSON, as a bad proxy sends it."""
    qdrant, cut = QdrantRest(), list[str]()

    def respond(request: Request) -> Reply:
        answer = qdrant(request)
        if answer.status == 200 and request.method != "GET" and request.path not in cut:
            cut.append(request.path)
            return replace(answer, body=answer.payload()[: len(answer.payload()) // 2])
        return answer

    with Loopback(respond) as server:
        for documents, wanted in zip((OLD, NEW), undisturbed, strict=True):
            ingest(server.url, documents, Clock().policy())
            assert wanted == points(qdrant)
    assert {"PUT", "POST"} <= {request.method for request in server.requests if request.path in cut}


def test_a_server_that_is_started_again_is_waited_for(undisturbed: tuple[Points, Points]) -> None:
    """Connections are refused for a while, in the middle of an ingest."""
    qdrant, clock = QdrantRest(), Clock()
    servers = [Loopback(qdrant)]
    port, one_at_a_time = servers[0].port, threading.Lock()

    def sleep(seconds: float) -> None:
        with one_at_a_time:
            clock.sleep(seconds)
            if len(clock.waits) == 4:
                servers.append(Loopback(qdrant, port=port))
                servers[-1].__enter__()

    class Restarted(ServerStore):
        """Its server goes away before the second write."""

        writes = 0

        def upsert(self, chunks: Any, vectors: Any) -> None:
            self.writes += 1
            if self.writes == 2:
                servers[0].__exit__(None, None, None)
            super().upsert(chunks, vectors)

    servers[0].__enter__()
    retry = replace(clock.policy(), sleep=sleep)
    store = Restarted(connect(servers[0].url, timeout=1), "documents", retry=retry)
    with Pipeline(embedder=FakeEmbedder(dimension=16), store=store, chunk_tokens=32, chunk_overlap=0) as rag:
        rag.ingest(OLD)
    servers[-1].__exit__(None, None, None)
    assert (2, undisturbed[0]) == (len(servers), points(qdrant))
    assert sorted(set(clock.waits)) == sorted(clock.waits)  # jitter: no two waits are equal
    assert clock.waits[0] < max(clock.waits)


def test_it_gives_up_after_the_deadline_and_goes_on_with_the_next_run(undisturbed: tuple[Points, Points]) -> None:
    """With an error that has a name and says what to do; in between each document is old, new, or both."""
    qdrant, clock, writes = QdrantRest(), Clock(), list[str]()
    with Loopback(qdrant) as server:
        ingest(server.url, OLD, clock.policy())

    def fault(request: Request) -> Reply | None:
        writes.extend([request.path] if "/points?" in request.path else [])
        return Reply(503, {"status": {"error": "shutting down"}}) if len(writes) > 2 else None

    with (
        Loopback(with_faults(qdrant, fault)) as server,
        pytest.raises(StoreUnavailableError, match=r"shutting down.*deadline of 120 s.*tried \d\d times.*go on"),
    ):
        ingest(server.url, NEW, clock.policy())
    assert 100 < clock.now < 121
    between = points(qdrant)
    assert undisturbed[0].items() < between.items()
    with Loopback(qdrant) as server:
        ingest(server.url, NEW, clock.policy())
    assert undisturbed[1] == points(qdrant)


def test_retry_after_is_obeyed() -> None:
    """A server that says when to come again is asked then and not before."""
    qdrant, clock, told = QdrantRest(), Clock(), list[str]()

    def fault(request: Request) -> Reply | None:
        if "/points?" in request.path and not told:
            told.append(request.path)
            return Reply(429, headers={"retry-after": "17"})
        return None

    with Loopback(with_faults(qdrant, fault)) as server:
        ingest(server.url, OLD[:3], clock.policy())
    assert [17] == [int(wait) for wait in clock.waits]


@pytest.mark.parametrize("first", [Reply(503), Reply(fault="reset")], ids=["503", "reset"])
def test_the_first_contact_is_not_waited_for(first: Reply) -> None:
    """A server that is not there, or a wrong address, is said at once."""
    clock = Clock()
    with Loopback([first]) as server, pytest.raises(StoreUnavailableError):
        ingest(server.url, OLD[:3], clock.policy())
    assert [] == clock.waits


def test_a_refused_write_is_not_repeated() -> None:
    """What cannot get better stops the ingest at once, with the server's own words."""
    qdrant, clock = QdrantRest(), Clock()

    def fault(request: Request) -> Reply | None:
        return Reply(400, {"status": {"error": "strict mode"}}) if "/points?" in request.path else None

    with Loopback(with_faults(qdrant, fault)) as server, pytest.raises(StoreError, match="strict mode"):
        ingest(server.url, OLD[:3], clock.policy())
    assert [] == clock.waits
