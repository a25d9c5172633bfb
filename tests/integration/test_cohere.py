"""The Cohere reranker through the real SDK against a loopback server that speaks the v2 wire format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline.errors import RerankerError, SettingsError
from pipeline.rerankers.cohere import CohereReranker
from pipeline.retrying import RetryPolicy
from pipeline.traffic import Gate
from pipeline.types import RerankScore
from tests.loopback import Loopback, Reply, Request, cohere_rerank

KEY = "co-secret-Key-1234567890"
TEXTS = ["nothing of it", "read json files", "how to read json"]
Make = Callable[..., CohereReranker]


@pytest.fixture
def waits() -> list[float]:
    """Seconds that the retry policy wanted to wait."""
    return []


@pytest.fixture
def make(waits: list[float]) -> Iterator[Make]:
    """Makes rerankers whose retry waits take no time."""
    made: list[CohereReranker] = []

    def make_one(server: Loopback | str, **arguments: Any) -> CohereReranker:
        url = server if isinstance(server, str) else server.url
        arguments.setdefault("retry", RetryPolicy(sleep=waits.append))
        made.append(CohereReranker(api_key=KEY, base_url=url, **arguments))
        return made[-1]

    yield make_one
    for reranker in made:
        reranker.close()


def results(*pairs: tuple[Any, Any]) -> Reply:
    return Reply(json={"id": "x", "results": [{"index": index, "relevance_score": score} for index, score in pairs]})


GOOD = results((2, 0.9), (1, 0.6), (0, 0.1))


def test_the_request_is_cohere_s(make: Make) -> None:
    """Path, model, query, documents and bearer key are what the v2 API asks for."""
    with Loopback([GOOD]) as server:
        make(server, model="rerank-v4.0-pro").score("read json", TEXTS)
    request = server.requests[0]
    assert (request.method, request.path) == ("POST", "/v2/rerank")
    assert request.json == {"model": "rerank-v4.0-pro", "query": "read json", "documents": TEXTS}
    assert request.headers["authorization"] == f"Bearer {KEY}"


def test_limits_of_documents_and_priority_are_passed_on(make: Make) -> None:
    """Under the names of the v2 API; the reranker cuts longer texts into windows of that size by itself."""
    with Loopback([GOOD]) as server:
        reranker = make(server, max_tokens_per_doc=512, priority=3)
        reranker.score("read json", TEXTS)
    assert (512, 3) == (server.requests[0].json["max_tokens_per_doc"], server.requests[0].json["priority"])
    assert 512 == reranker.max_tokens


@pytest.mark.parametrize("suffix", ["", "/", "/v2", "/v1/"])
def test_the_base_url_may_carry_the_version(make: Make, suffix: str) -> None:
    """The SDK adds it by itself; twice would be a 404."""
    with Loopback(cohere_rerank) as server:
        make(server.url + suffix).score("read json", TEXTS)
    assert server.requests[0].path == "/v2/rerank"


def test_no_texts_no_call(make: Make) -> None:
    """An empty or blank list is answered here: the API would refuse it."""
    with Loopback(cohere_rerank) as server:
        reranker = make(server)
        assert reranker.score("q", []) == []
        assert reranker.score("q", ["", " \n"]) == [RerankScore(0.0, 0.0), RerankScore(0.0, 0.0)]
    assert server.requests == []


def test_blank_texts_are_not_sent(make: Make) -> None:
    """They get 0 in their place, and the others their own scores."""
    with Loopback(cohere_rerank) as server:
        scores = make(server).score("json", ["", "json", "\t", "no"])
    assert server.requests[0].json["documents"] == ["json", "no"]
    assert [score.probability for score in scores] == [0.0, 0.5, 0.0, 0.0]


def test_equal_texts_are_sent_once(make: Make) -> None:
    """And share one score."""
    with Loopback(cohere_rerank) as server:
        scores = make(server).score("json", ["json", "no", "json"])
    assert server.requests[0].json["documents"] == ["json", "no"]
    assert [score.probability for score in scores] == [0.5, 0.0, 0.5]


def test_long_lists_are_sent_in_parts(make: Make) -> None:
    """2,500 documents take three calls of at most 1,000, and every score stays with its text."""
    texts = [f"json {i}" if i % 7 == 0 else f"other {i}" for i in range(2500)]
    with Loopback(cohere_rerank) as server:
        scores = make(server).score("json", texts)
    assert sorted(len(request.json["documents"]) for request in server.requests) == [500, 1000, 1000]
    assert [0.5 if i % 7 == 0 else 0.0 for i in range(2500)] == [score.probability for score in scores]


def test_the_deadline_covers_all_parts(make: Make) -> None:
    """A list sent in parts has one deadline, not one for each part."""
    now = [0.0]

    def slow(request: Request) -> Reply:
        now[0] += 40.0
        return cohere_rerank(request)

    with Loopback(slow) as server:
        policy = RetryPolicy(clock=lambda: now[0], tries=1)
        reranker = make(server, max_documents=2, gate=Gate("Cohere", concurrency=1), retry=policy)
        with pytest.raises(RerankerError, match="no time left to ask"):
            reranker.score("q", ["a", "b", "c"])
    assert len(server.requests) == 1


def test_odd_unicode_reaches_the_server_whole(make: Make) -> None:
    """Chinese, emoji and NUL arrive as they are; a lone surrogate, which UTF-8 cannot hold, as U+FFFD."""
    with Loopback(cohere_rerank) as server:
        make(server).score("如何 \ud800", ["读取 JSON", "😀\x00", "\udcff"])
    assert server.requests[0].json["query"] == "如何 \ufffd"
    assert server.requests[0].json["documents"] == ["读取 JSON", "😀\x00", "\ufffd"]


@pytest.mark.parametrize("key", ["", "  ", "two words", "clé", "new\nline", "tab\tin"])
def test_a_key_that_no_header_can_carry_is_refused_at_once(key: str) -> None:
    """HTTP libraries would quote it whole in their error; ours names the variable instead."""
    with pytest.raises(SettingsError, match="RAG_COHERE_API_KEY") as caught:
        CohereReranker(api_key=key)
    assert not key.strip() or key not in str(caught.value)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://[::1"])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    """The message names the variable."""
    with pytest.raises(SettingsError, match="RAG_COHERE_BASE_URL"):
        CohereReranker(api_key=KEY, base_url=url)
