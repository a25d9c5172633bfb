"""The Cohere reranker through the real SDK against a loopback server that speaks the v2 wire format."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline.errors import RerankerError, SettingsError
from pipeline.rerankers.cohere import CohereReranker
from pipeline.retrying import RetryPolicy
from pipeline.types import RerankScore
from tests.loopback import Loopback, Reply, cohere_rerank

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


def test_scores_come_back_in_input_order(make: Make) -> None:
    """The API answers best first; the scores are put back by index and taken as they are."""
    with Loopback([GOOD]) as server:
        scores = make(server).score("read json", TEXTS)
    assert scores == [RerankScore(0.1, 0.1), RerankScore(0.6, 0.6), RerankScore(0.9, 0.9)]


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
    assert [len(request.json["documents"]) for request in server.requests] == [1000, 1000, 500]
    assert [0.5 if i % 7 == 0 else 0.0 for i in range(2500)] == [score.probability for score in scores]


@pytest.mark.parametrize(
    "failure",
    [
        Reply(429, {"message": "slow down"}),
        Reply(408, {"message": "too slow"}),
        Reply(500, {"message": "oops"}),
        Reply(502, body=b"<html>bad gateway</html>", content_type="text/html"),
        Reply(503, {"message": "down"}),
        Reply(504, body=b"", content_type="text/plain"),
        Reply(fault="reset"),
        Reply(json={"results": []}, fault="cut"),
        Reply(body=b'{"results": [{"index": 0, "relev'),
    ],
    ids=["429", "408", "500", "502-html", "503", "504-empty", "reset", "cut-body", "truncated-json"],
)
def test_passing_failures_are_tried_again(make: Make, waits: list[float], failure: Reply) -> None:
    """Two failures, then an answer: the caller sees the answer alone."""
    with Loopback([failure, failure, GOOD]) as server:
        scores = make(server).score("read json", TEXTS)
    assert [score.raw for score in scores] == [0.1, 0.6, 0.9]
    assert len(server.requests) == 3
    assert len(waits) == 2


@pytest.mark.parametrize("status", [429, 500, 503])
def test_lasting_failures_end_in_our_error(make: Make, status: int) -> None:
    """It names the provider and the status, and says that trying later may help."""
    with Loopback([Reply(status, {"message": "no luck"})]) as server:
        reranker = make(server)
        with pytest.raises(RerankerError, match=rf"answered {status} \(no luck\).*tried 5 times") as caught:
            reranker.score("q", TEXTS)
    assert (caught.value.provider, caught.value.status, caught.value.retryable) == ("cohere", status, True)
    assert len(server.requests) == 5


def test_retry_after_is_obeyed(make: Make, waits: list[float]) -> None:
    """The wait is what the server asks for, plus a little jitter."""
    with Loopback([Reply(429, {"message": "m"}, headers={"Retry-After": "3"}), GOOD]) as server:
        make(server).score("q", TEXTS)
    assert len(waits) == 1
    assert 3.0 <= waits[0] <= 3.5


@pytest.mark.parametrize("value", ["3600", "Fri, 31 Dec 2038 23:59:59 GMT"])
def test_a_retry_after_beyond_the_deadline_fails_at_once(make: Make, waits: list[float], value: str) -> None:
    """Seconds or date: there is one request, no wait, and the message says why."""
    with Loopback([Reply(429, {"message": "m"}, headers={"Retry-After": value})]) as server:
        reranker = make(server)
        with pytest.raises(RerankerError, match=r"asks to wait .* are left of the deadline of 30 s"):
            reranker.score("q", TEXTS)
    assert len(server.requests) == 1
    assert waits == []


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (400, "RAG_RERANKER_MODEL"),
        (401, "RAG_COHERE_API_KEY"),
        (402, "billing"),
        (403, "RAG_COHERE_API_KEY"),
        (404, "RAG_RERANKER_MODEL and RAG_COHERE_BASE_URL"),
        (413, "too large"),
        (422, "RAG_RERANKER_MODEL"),
        (498, "RAG_COHERE_BASE_URL"),
        (307, "RAG_COHERE_BASE_URL"),
    ],
)
def test_refusals_are_not_tried_again(make: Make, status: int, advice: str) -> None:
    """One request, and the message says what to check."""
    reply = Reply(status, {"message": "because"}, headers={"Location": "/elsewhere"} if status == 307 else {})
    with Loopback([reply]) as server:
        reranker = make(server)
        with pytest.raises(RerankerError, match=rf"Cohere at .* answered {status} \(because\).*{advice}") as caught:
            reranker.score("q", TEXTS)
    assert len(server.requests) == 1
    assert (caught.value.status, caught.value.retryable) == (status, False)


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (results((0, 0.1), (1, 0.2)), "did not answer for text 2"),
        (results((0, 0.1), (1, 0.2), (1, 0.3)), "answered twice for text 1"),
        (results((0, 0.1), (1, 0.2), (3, 0.3)), "answered for text 3, and 3 were sent"),
        (results((0, 0.1), (1, 0.2), (-1, 0.3)), "answered for text -1"),
        (results((0, 0.1), (1, 0.2), (2, float("nan"))), "relevance score of nan"),
        (results((0, 0.1), (1, 0.2), (2, 1.5)), "relevance score of 1.5"),
        (results((0, 0.1), (1, 0.2), (2, -0.5)), "relevance score of -0.5"),
        (results((0, 0.1), (1, 0.2), (2, None)), "relevance score of nan"),
        (results((0, 0.1), (1, 0.2), (2, "high")), "relevance score of nan"),
        (results((0, 0.1), (1, 0.2), (None, 0.3)), "answered for text None"),
        (Reply(json={"results": None}), "without results"),
        (Reply(json={"results": "none"}), "without results"),
        (Reply(json={"results": [1, 2, 3]}), "JSON of an unknown form"),
        (Reply(json={}), "without results"),
        (Reply(json=[]), "JSON of an unknown form"),
        (Reply(json=None), "without results"),
        (Reply(body=b"<html>hi</html>", content_type="text/html; charset=utf-8"), "answered text/html, not JSON"),
        (Reply(body=b"\xff\xfe", content_type="text/plain"), "answered text/plain, not JSON"),
    ],
)
def test_answers_that_make_no_sense_are_errors(make: Make, reply: Reply, says: str) -> None:
    """They are neither guessed at nor asked for again."""
    with Loopback([reply]) as server:
        reranker = make(server)
        with pytest.raises(RerankerError, match=says) as caught:
            reranker.score("q", TEXTS)
    assert len(server.requests) == 1
    assert not caught.value.retryable


@pytest.mark.parametrize("fault", ["stall", "stall-body", "trickle"])
def test_slow_servers_are_given_up(make: Make, fault: Any) -> None:
    """No answer, half a body, or a byte now and then: the request ends with its timeout."""
    with Loopback([Reply(json={"results": []}, fault=fault)]) as server:
        reranker = make(server, timeout_s=0.2, retry=RetryPolicy(tries=1))
        reranker._sdk()  # its import takes longer than the timeout
        started = time.monotonic()
        with pytest.raises(RerankerError, match=r"did not answer within 0.2 s \(see RAG_RERANK_TIMEOUT\)") as caught:
            reranker.score("q", TEXTS)
        assert time.monotonic() - started < 0.6
    assert caught.value.retryable


def test_the_timeout_is_one_for_headers_and_body(make: Make) -> None:
    """Late headers leave the body only the rest of it; httpx by itself would start anew."""
    with Loopback([Reply(json={"results": []}, fault="stall-body", late=0.6)]) as server:
        reranker = make(server, timeout_s=0.8, retry=RetryPolicy(tries=1))
        reranker._sdk()
        started = time.monotonic()
        with pytest.raises(RerankerError, match="did not answer"):
            reranker.score("q", TEXTS)
        assert time.monotonic() - started < 1.2


def test_the_deadline_bounds_the_last_request(make: Make, waits: list[float]) -> None:
    """The timeout of one request is 10 s, and the whole call still ends with the deadline."""
    with Loopback([Reply(fault="stall")]) as server:
        reranker = make(server, deadline_s=0.3)
        reranker._sdk()
        started = time.monotonic()
        with pytest.raises(RerankerError, match=r"the deadline of 0\.3 s leaves no time"):
            reranker.score("q", TEXTS)
        assert time.monotonic() - started < 0.7
    assert waits == []


def test_the_deadline_covers_all_parts(make: Make) -> None:
    """A list sent in parts has one deadline, not one for each part."""
    ticks = iter([0.0, 1.0, 1.0, 1.0, 40.0, 40.0, 40.0, 40.0])  # the first part took until second 40
    with Loopback(cohere_rerank) as server:
        reranker = make(server, max_documents=2, retry=RetryPolicy(clock=lambda: next(ticks, 40.0), tries=1))
        with pytest.raises(RerankerError, match="no time left to ask"):
            reranker.score("q", ["a", "b", "c"])
    assert len(server.requests) <= 1


def test_an_unreachable_server_is_our_error(make: Make, waits: list[float]) -> None:
    """Nobody listens: tried again, then the message names the address and the setting."""
    with Loopback([GOOD]) as server:
        url = server.url
    reranker = make(url)
    with pytest.raises(RerankerError, match=rf"no connection to Cohere at {url}.*RAG_COHERE_BASE_URL") as caught:
        reranker.score("q", TEXTS)
    assert caught.value.retryable
    assert caught.value.status is None
    assert len(waits) == 4


def test_odd_unicode_reaches_the_server_whole(make: Make) -> None:
    """Chinese, emoji and NUL arrive as they are; a lone surrogate, which UTF-8 cannot hold, as U+FFFD."""
    with Loopback(cohere_rerank) as server:
        make(server).score("如何 \ud800", ["读取 JSON", "😀\x00", "\udcff"])
    assert server.requests[0].json["query"] == "如何 \ufffd"
    assert server.requests[0].json["documents"] == ["读取 JSON", "😀\x00", "\ufffd"]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(401, {"message": f"invalid api token: {KEY}"}, headers={"X-Your-Key": KEY}),
        Reply(500, {"message": "oops"}),
        Reply(body=f"<html>{KEY}".encode(), content_type="text/html"),
        Reply(fault="reset"),
        results((0, 0.1)),
    ],
    ids=["401-quoting-the-key", "500", "html", "reset", "missing"],
)
def test_the_key_appears_nowhere(make: Make, caplog: pytest.LogCaptureFixture, reply: Reply) -> None:
    """Not in the message, the chained exceptions' text, the traceback, a repr or a log, though a server quotes it."""
    caplog.set_level(logging.DEBUG)
    with Loopback([reply]) as server:
        reranker = make(server)
        with pytest.raises(RerankerError) as caught:
            reranker.score("q", TEXTS)
    seen: list[BaseException] = []
    error: BaseException | None = caught.value
    while error is not None:
        seen.append(error)
        error = error.__cause__ or error.__context__
    texts = [part for one in seen for part in (str(one), repr(one), repr(one.args))]
    texts += [*traceback.format_exception(caught.value), repr(reranker), repr(vars(reranker))]
    texts += [record.getMessage() for record in caplog.records if not record.name.startswith("httpcore")]
    assert [] == [text for text in texts if KEY in text]


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


def test_credentials_in_the_address_are_not_shown(make: Make) -> None:
    """A proxy's user and password in the base URL stay out of messages."""
    with Loopback([Reply(404, {"message": "m"})]) as server:
        reranker = make(server.url.replace("http://", "http://user:hidden@"))
        with pytest.raises(RerankerError) as caught:
            reranker.score("q", TEXTS)
    assert "hidden" not in str(caught.value) + repr(reranker)


def test_one_client_serves_many_requests_on_one_connection(make: Make) -> None:
    """Connections are kept: a TLS handshake for each query would cost more than the query."""
    with Loopback(cohere_rerank) as server:
        reranker = make(server)
        for _ in range(3):
            reranker.score("json", TEXTS)
        assert len(server.requests) == 3
        assert server.connections == 1
