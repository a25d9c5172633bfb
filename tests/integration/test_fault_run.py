"""A thousand queries against a remote reranker that fails, stalls and limits at random, with fallbacks."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from random import Random

from pipeline.core import Pipeline
from pipeline.rerankers.http import HttpReranker
from pipeline.traffic import Gate
from pipeline.types import Document, QueryResult
from tests.fakes import FakeEmbedder, FakeReranker, FakeStore
from tests.loopback import Loopback, Reply, Request, rerank_server

DEADLINE_MS = 400.0
# What the machine may add when it is busy: threads that wait for their turn, not ours to bound.
SLACK_MS = 2000.0
# What a hundred requests meet, in random order.
FAULTS = {"good": 80, "500": 4, "reset": 4, "cut": 3, "429": 3, "stall": 2, "nan": 2, "slow": 2}
# The request that is told to wait longer than the deadline, which holds for all that follow.
LATER = 250


def test_every_query_answers_in_time_and_says_who_answered() -> None:
    """Degraded exactly where the remote reranker did not answer; no query fails, and no thread stays behind."""
    good = rerank_server("jina")
    kinds = [kind for kind, count in FAULTS.items() for _ in range(count)]
    Random(7).shuffle(kinds)
    lock = threading.Lock()
    served: Counter[str] = Counter()

    def respond(request: Request) -> Reply:
        with lock:
            kind = "429-later" if served.total() == LATER else kinds[served.total() % len(kinds)]
            served[kind] += 1
        if kind == "429":
            return Reply(429, {"message": "slow down"}, headers={"Retry-After": "0"})
        if kind == "429-later":
            return Reply(429, {"message": "slow down"}, headers={"Retry-After": "1"})
        if kind == "nan":
            count = len(request.json["documents"])
            return Reply(json={"results": [{"index": i, "relevance_score": float("nan")} for i in range(count)]})
        faults = {
            "500": Reply(500, {"message": "oops"}),
            "reset": Reply(fault="reset"),
            "cut": Reply(json={"results": []}, fault="cut"),
            "stall": Reply(fault="stall"),
        }
        answer = good(request)
        return Reply(json=answer.json, late=0.05) if kind == "slow" else faults.get(kind, answer)

    threads = threading.active_count()
    with Loopback(respond) as server:
        remote = HttpReranker(server.url, gate=Gate("http", failures=4, pause_s=0.05))
        with Pipeline(
            embedder=FakeEmbedder(),
            store=FakeStore(),
            reranker=remote,
            fallbacks=[FakeReranker(name="local"), None],
            deadline_ms=DEADLINE_MS,
            threshold=0.0,
        ) as rag:
            rag.ingest([Document(id=str(i), text=f"apple number {i} is a fruit") for i in range(20)])

            def ask(i: int) -> tuple[QueryResult, float]:
                start = time.monotonic()
                result = rag.query(f"apple number {i}")
                return result, (time.monotonic() - start) * 1e3

            with ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(ask, range(1000)))

    assert threads == threading.active_count()
    assert max(milliseconds for _, milliseconds in answers) < DEADLINE_MS + SLACK_MS
    results = [result for result, _ in answers]
    by = Counter(result.reranker for result in results)
    # Each kind of fault came up, and the one that was asked for went on answering between them; how often depends on
    # how many queries come while it is left alone.
    assert {*FAULTS, "429-later"} == set(served)
    assert by["http"] > 50
    assert by["local"] > 10
    for result in results:
        assert result.degraded == (result.reranker != "http")
        assert result.degraded == any("failed" in warning for warning in result.warnings)
        assert any("threshold was not applied" in warning for warning in result.warnings) == result.degraded
        assert 5 == len(result.hits)
        assert 20 == result.reranked or result.reranker == "none"
    assert rag.fallbacks_taken["http"] == 1000 - by["http"]
