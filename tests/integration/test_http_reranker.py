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
    assert [4, 32, 32, 32] == sorted(len(request.json["texts"]) for request in server.requests)
    assert {True} == {(scores[i].raw > scores[1].raw) == (i % 3 == 0) for i in range(100)}


def test_blank_texts_are_not_sent_and_come_last(make: Make) -> None:
    """Servers refuse them; one must not fail the others."""
    with Loopback(rerank_server("tei", logits=True)) as server:
        scores = make(server.url, shape="tei").score("read json", ["read json", " ", ""])
    assert ["read json"] == server.requests[0].json["texts"]
    assert scores[1] == scores[2]
    assert scores[0].raw > scores[1].raw


def test_a_score_outside_the_declared_range_names_the_setting(make: Make) -> None:
    """Logits where probabilities were declared are not guessed to be logits."""
    answer = {"results": [{"index": 0, "relevance_score": 3.2}]}
    with (
        Loopback([Reply(json=answer)]) as server,
        pytest.raises(RerankerError, match=r"score of 3.2, which is no probability; RAG_RERANK_SCORES"),
    ):
        make(server.url).score("q", ["a"])


def test_scores_under_another_shapes_name_point_to_the_shape(make: Make) -> None:
    """Not to what its scores are; and no fallback may hide it."""
    answer = {"results": [{"index": 0, "score": 0.5}]}
    with Loopback([Reply(json=answer)]) as server, pytest.raises(RerankerError, match="RAG_RERANK_SHAPE") as caught:
        make(server.url).score("q", ["a"])
    assert caught.value.operator
    assert "RAG_RERANK_SCORES" not in str(caught.value)


def test_the_query_of_an_address_stays_behind_the_path(make: Make) -> None:
    """Some providers want a version there."""
    with Loopback([Reply(json={"results": [{"index": 0, "relevance_score": 0.5}]})]) as server:
        make(f"{server.url}/models/v1/?api-version=2", model="m").score("q", ["t"])
    assert ["/models/v1/rerank?api-version=2"] == [request.path for request in server.requests]
