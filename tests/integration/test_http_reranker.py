"""Rerankers over HTTP against loopback servers that speak each provider's wire format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline.errors import RerankerError
from pipeline.rerankers.http import HttpReranker, Shape
from pipeline.retrying import RetryPolicy
from pipeline.scoring import sigmoid
from pipeline.types import RerankScore
from tests.loopback import Loopback, Reply, rerank_server

KEY = "secret-Key-1234567890"
TEXTS = ["nothing of it", "read json files", "how to read json"]
Make = Callable[..., HttpReranker]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes rerankers whose retry waits take no time."""
    made: list[HttpReranker] = []

    def make_one(url: str, **arguments: Any) -> HttpReranker:
        made.append(HttpReranker(url, api_key=KEY, retry=RetryPolicy(sleep=lambda _: None), **arguments))
        return made[-1]

    yield make_one
    for reranker in made:
        reranker.close()


@pytest.mark.parametrize(
    ("shape", "path", "body"),
    [
        ("jina", "/v1/rerank", {"query": "read json", "documents": TEXTS, "return_documents": False, "model": "m"}),
        ("tei", "/rerank", {"query": "read json", "texts": TEXTS, "raw_scores": True, "truncate": True, "model": "m"}),
        ("cohere", "/v2/rerank", {"query": "read json", "documents": TEXTS, "model": "m"}),
        ("voyage", "/v1/rerank", {"query": "read json", "documents": TEXTS, "truncation": True, "model": "m"}),
    ],
)
def test_the_request_is_the_providers(make: Make, shape: Shape, path: str, body: dict[str, Any]) -> None:
    """Path, fields and bearer key are what each API documents."""
    with Loopback(rerank_server(shape, logits=shape == "tei")) as server:
        make(server.url, shape=shape, model="m").score("read json", TEXTS)
    request = server.requests[0]
    assert ("POST", path, body) == (request.method, request.path, request.json)
    assert f"Bearer {KEY}" == request.headers["authorization"]


def test_probabilities_are_taken_as_they_are_and_logits_get_the_sigmoid(make: Make) -> None:
    """Which of the two comes is declared by the shape, or by the caller."""
    answer = [{"index": 1, "score": 0.9}, {"index": 0, "score": 0.2}]
    with Loopback([Reply(json=answer)]) as server:
        logits = make(server.url, shape="tei").score("q", ["a", "b"])
        probabilities = make(server.url, shape="tei", scores="probability").score("q", ["a", "b"])
    assert [RerankScore(0.2, sigmoid(0.2)), RerankScore(0.9, sigmoid(0.9))] == logits
    assert [RerankScore(0.2, 0.2), RerankScore(0.9, 0.9)] == probabilities
    assert [True, False] == [request.json["raw_scores"] for request in server.requests]


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/rerank"])
def test_the_address_may_be_the_base_or_the_whole(make: Make, suffix: str) -> None:
    """Both are what people copy from documentation."""
    with Loopback(rerank_server("jina")) as server:
        make(server.url + suffix).score("read json", TEXTS)
    assert "/v1/rerank" == server.requests[0].path


def test_long_lists_are_sent_in_parts_and_merged(make: Make) -> None:
    """text-embeddings-inference takes 32 texts a request."""
    texts = [f"read {i}" if i % 3 else f"read json {i}" for i in range(100)]
    with Loopback(rerank_server("tei", logits=True)) as server:
        scores = make(server.url, shape="tei").score("read json", texts)
    assert [32, 32, 32, 4] == [len(request.json["texts"]) for request in server.requests]
    assert {True} == {(scores[i].raw > scores[1].raw) == (i % 3 == 0) for i in range(100)}


def test_blank_texts_are_not_sent_and_come_last(make: Make) -> None:
    """Servers refuse them; one must not fail the others."""
    with Loopback(rerank_server("tei", logits=True)) as server:
        scores = make(server.url, shape="tei").score("read json", ["read json", " ", ""])
    assert ["read json"] == server.requests[0].json["texts"]
    assert scores[1] == scores[2]
    assert scores[0].raw > scores[1].raw


def results(*pairs: tuple[Any, Any]) -> Reply:
    return Reply(json={"results": [{"index": index, "relevance_score": score} for index, score in pairs]})


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (results((0, 0.1), (1, 3.2), (2, 0.5)), "score of 3.2, which is no probability; RAG_RERANK_SCORES"),
        (results((0, 0.1), (1, None), (2, 0.5)), "score of nan"),
        (results((0, 0.1), (1, 0.2)), "did not answer for text 2"),
        (results((0, 0.1), (1, 0.2), (1, 0.3)), "answered twice for text 1"),
        (results((0, 0.1), (1, 0.2), (7, 0.3)), "answered for text 7"),
        (Reply(json={"data": []}), "RAG_RERANK_SHAPE"),
        (Reply(json=["x"]), "RAG_RERANK_SHAPE"),
        (Reply(body=b"<html>", content_type="text/html"), "not JSON"),
        (Reply(401, {"detail": f"bad key {KEY}"}), "RAG_RERANK_API_KEY"),
        (Reply(404, {"detail": "no model"}), "RAG_RERANKER_MODEL and RAG_RERANK_URL"),
        (Reply(422, {"error": "bad"}), "RAG_RERANKER_MODEL"),
    ],
)
def test_answers_that_cannot_be_used(make: Make, reply: Reply, said: str) -> None:
    """Asked once, named in one line, and without the key even if the server quotes it."""
    with Loopback([reply]) as server, pytest.raises(RerankerError, match=said) as caught:
        make(server.url).score("q", ["a", "b", "c"])
    assert (1, "http", False) == (len(server.requests), caught.value.provider, caught.value.retryable)
    assert KEY not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"


@pytest.mark.parametrize("fault", [Reply(429, {"message": "slow down"}), Reply(503), Reply(fault="reset")])
def test_passing_faults_are_tried_again(make: Make, fault: Reply) -> None:
    """A rate limit is not an outage."""
    with Loopback([fault, results((0, 0.4))]) as server:
        assert [RerankScore(0.4, 0.4)] == make(server.url).score("q", ["a"])
    assert 2 == len(server.requests)


def test_a_lasting_fault_is_retryable_and_counts_its_tries(make: Make) -> None:
    """So that a caller can fall back to another reranker."""
    with Loopback([Reply(500)]) as server, pytest.raises(RerankerError, match="tried 5 times") as caught:
        make(server.url).score("q", ["a"])
    assert (5, 500, True) == (len(server.requests), caught.value.status, caught.value.retryable)
