"""What holds for every reranker behind a network, against servers that fail in every way a server can."""

from __future__ import annotations

import contextlib
import logging
import re
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from pipeline import deadline
from pipeline.errors import RerankerError
from pipeline.interfaces import Reranker
from pipeline.rerankers.asking import RERANK_RETRY
from pipeline.rerankers.cohere import CohereReranker
from pipeline.rerankers.http import HttpReranker, Shape
from tests.loopback import SLOW, Fault, Loopback, Reply, Request

KEY = "secret-Key-1234567890"
TEXTS = ["nothing of it", "read json files", "how to read json"]
Pairs = list[tuple[Any, Any]]
GOOD: Pairs = [(2, 0.9), (1, 0.6), (0, 0.1)]


@dataclass
class Case:
    """One kind of remote reranker, and how its server answers."""

    name: str
    provider: str
    """As its errors name it."""
    build: Callable[..., Reranker]
    list_field: str | None
    """Where the results are in an answer; None for a bare list."""
    score_field: str
    key_setting: str
    url_setting: str
    waits: list[float] = field(default_factory=list)
    """Seconds that the retry policy wanted to wait."""
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def make(self, server: Loopback | str, tries: int = 5, **arguments: Any) -> Reranker:
        url = server if isinstance(server, str) else server.url
        now = [1000.0]

        def sleep(seconds: float) -> None:
            self.waits.append(seconds)
            now[0] += seconds

        policy = replace(RERANK_RETRY, tries=tries, sleep=sleep, clock=lambda: now[0] + time.monotonic())
        made = self.build(url, api_key=KEY, retry=policy, **arguments)
        return self.stack.enter_context(contextlib.closing(made))  # type: ignore[type-var]

    def answer(self, pairs: Pairs) -> Reply:
        results = [{"index": index, self.score_field: score} for index, score in pairs]
        return Reply(json=results if self.list_field is None else {"id": "x", self.list_field: results})


def _cohere(url: str, **arguments: Any) -> Reranker:
    made = CohereReranker(base_url=url, **arguments)
    made._sdk()  # its import takes longer than the shortest timeouts here
    return made


def _http(shape: Shape, **fixed: Any) -> Callable[..., Reranker]:
    def build(url: str, **arguments: Any) -> Reranker:
        # Declared, so that one set of scores serves all shapes.
        return HttpReranker(url, shape=shape, model="m", scores="probability", **fixed, **arguments)

    return build


_HTTP = ("RAG_RERANK_API_KEY", "RAG_RERANK_URL")
_JINA: dict[str, str | None] = {"name": "jina", "key_setting": "RAG_JINA_API_KEY", "url_setting": "RAG_JINA_BASE_URL"}
_JINA |= {"length_setting": "RAG_CHUNK_TOKENS", "scores_setting": None}
_LENGTH_SETTINGS = {
    "cohere": "RAG_COHERE_MAX_TOKENS_PER_DOC",
    "jina": "RAG_CHUNK_TOKENS",
    "http": "RAG_RERANK_MAX_TOKENS",
}
CASES = [
    ("cohere-sdk", "cohere", _cohere, "results", "relevance_score", "RAG_COHERE_API_KEY", "RAG_COHERE_BASE_URL"),
    ("jina", "jina", _http("jina", **_JINA), "results", "relevance_score", "RAG_JINA_API_KEY", "RAG_JINA_BASE_URL"),
    ("http-jina", "http", _http("jina"), "results", "relevance_score", *_HTTP),
    ("http-tei", "http", _http("tei"), None, "score", *_HTTP),
    ("http-cohere", "http", _http("cohere"), "results", "relevance_score", *_HTTP),
    ("http-voyage", "http", _http("voyage"), "data", "relevance_score", *_HTTP),
]


@pytest.fixture(params=CASES, ids=[case[0] for case in CASES])
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    made = Case(*request.param)
    with made.stack:
        yield made


def raws(reranker: Reranker) -> list[float]:
    return [score.raw for score in reranker.score("read json", TEXTS)]


def failure(reranker: Reranker) -> RerankerError:
    with pytest.raises(RerankerError) as caught:
        reranker.score("read json", TEXTS)
    return caught.value


def test_scores_come_back_in_input_order(case: Case) -> None:
    """Servers answer best first; the scores are put back by index."""
    with Loopback([case.answer(GOOD)]) as server:
        assert [0.1, 0.6, 0.9] == raws(case.make(server))


PASSING = {
    "429": Reply(429, {"message": "slow down"}),
    "408": Reply(408, {"message": "too slow"}),
    "500": Reply(500, {"message": "oops"}),
    "502-html": Reply(502, body=b"<html>bad gateway</html>", content_type="text/html"),
    "503": Reply(503, {"message": "down"}),
    "504-empty": Reply(504, body=b"", content_type="text/plain"),
    "reset": Reply(fault="reset"),
    "cut-body": Reply(json={"results": []}, fault="cut"),
    "truncated-json": Reply(body=b'{"results": [{"index": 0, "relev'),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_passing_faults_are_tried_again(case: Case, fault: Reply) -> None:
    """Two failures, then an answer: the caller sees the answer alone."""
    with Loopback([fault, fault, case.answer(GOOD)]) as server:
        assert [0.1, 0.6, 0.9] == raws(case.make(server))
    assert (3, 2) == (len(server.requests), len(case.waits))


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_lasting_faults_end_in_our_error(case: Case, fault: Reply) -> None:
    """It names the provider and the status, says how often it was tried, and that later may be better."""
    with Loopback([fault]) as server:
        error = failure(case.make(server))
    status = fault.status if fault.status != 200 or fault.body else None
    assert (case.provider, status, True, False) == (error.provider, error.status, error.retryable, error.operator)
    assert "tried 5 times" in str(error)
    assert 5 == len(server.requests)


def test_retry_after_is_obeyed(case: Case) -> None:
    """The wait is what the server asks for, plus a little jitter."""
    busy = Reply(429, {"message": "m"}, headers={"Retry-After": "3"})
    with Loopback([busy, case.answer(GOOD)]) as server:
        assert [0.1, 0.6, 0.9] == raws(case.make(server))
    assert 1 == len(case.waits)
    assert 3.0 <= case.waits[0] <= 3.5


@pytest.mark.parametrize("value", ["3600", "Fri, 31 Dec 2038 23:59:59 GMT"])
def test_a_retry_after_beyond_the_deadline_fails_at_once(case: Case, value: str) -> None:
    """Seconds or date: there is one request, no wait, and the message says why."""
    with Loopback([Reply(429, {"message": "m"}, headers={"Retry-After": value})]) as server:
        error = failure(case.make(server))
    assert "asks to wait" in str(error)
    assert "left of the deadline of 30 s" in str(error)
    assert (1, []) == (len(server.requests), case.waits)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 422, 498, 307])
def test_refusals_are_not_tried_again(case: Case, status: int) -> None:
    """One request; the message says what the server said and what to check, and no fallback may hide it."""
    reply = Reply(status, {"message": "because"}, headers={"Location": "/elsewhere"} if status == 307 else {})
    with Loopback([reply]) as server:
        error = failure(case.make(server))
    advice = {
        400: "RAG_RERANKER_MODEL",
        401: case.key_setting,
        402: "billing",
        403: case.key_setting,
        404: f"RAG_RERANKER_MODEL and {case.url_setting}",
        422: "RAG_RERANKER_MODEL",
    }.get(status, case.url_setting)
    assert f"answered {status} (because)" in str(error)
    assert advice in str(error)
    assert (case.provider, status, False, True) == (error.provider, error.status, error.retryable, error.operator)
    assert 1 == len(server.requests)


TOO_LARGE = {
    "413": Reply(413, {"message": "because"}),
    "413-of-a-proxy": Reply(413, body=b"<html>Request Entity Too Large</html>", content_type="text/html"),
    "tei": Reply(422, {"error": "batch size 3 > maximum allowed batch size 1", "error_type": "Validation"}),
    "pydantic": Reply(422, {"detail": [{"msg": "List should have at most 1 items after validation, not 3"}]}),
    "vllm": Reply(400, {"message": "This model's maximum context length is 512 tokens. Please reduce the length."}),
    "voyage": Reply(400, {"detail": "The max allowed tokens per submitted batch is 120000."}),
}


@pytest.mark.parametrize("refusal", TOO_LARGE.values(), ids=TOO_LARGE)
@pytest.mark.parametrize("most", [1, 2])
def test_what_is_too_large_for_one_request_goes_in_halves(case: Case, refusal: Reply, most: int) -> None:
    """Down to one text; the caller sees the scores alone."""
    values = dict(zip(TEXTS, [0.1, 0.6, 0.9], strict=True))

    def respond(request: Request) -> Reply:
        texts = request.json.get("texts") or request.json["documents"]
        return case.answer([(i, values[text]) for i, text in enumerate(texts)]) if len(texts) <= most else refusal

    with Loopback(respond) as server:
        assert [0.1, 0.6, 0.9] == raws(case.make(server))
    assert ({1: 5, 2: 3}[most], []) == (len(server.requests), case.waits)


@pytest.mark.parametrize("refusal", TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_single_text_that_is_too_long_names_the_setting(case: Case, refusal: Reply) -> None:
    """A fallback may answer: no key, model or address is wrong, and perhaps this text or query alone is that long."""
    with Loopback([refusal]) as server:
        error = failure(case.make(server))
    assert f"set {_LENGTH_SETTINGS[case.provider]} to what it takes" in str(error)
    assert (case.provider, refusal.status, False, False) == (
        error.provider,
        error.status,
        error.retryable,
        error.operator,
    )
    assert 2 == len(server.requests)


OTHERS: list[Any] = [
    "max_tokens_per_doc: unknown field",
    "no such model",
    "the trial limit is exceeded",
    "Invalid token: no longer valid",
    "this API key is limited to model x, and the input names y",
    # FastAPI's, with the request in it.
    [{"msg": "Field required", "input": {"query": "What is the maximum size of the documents?"}}],
]


@pytest.mark.parametrize("says", OTHERS, ids=str)
def test_other_refusals_are_not_taken_for_one_of_size(case: Case, says: Any) -> None:
    """A fallback would hide a setting that is wrong. What was asked is no part of what the server says."""
    with Loopback([Reply(422, {"detail": says})]) as server:
        error = failure(case.make(server))
    assert (True, 1) == (error.operator, len(server.requests))
    assert "What is the maximum" not in str(error)


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ([(0, 0.1), (1, 0.2)], "did not answer for text 2"),
        ([(0, 0.1), (1, 0.2), (1, 0.3)], "answered twice for text 1"),
        ([(0, 0.1), (1, 0.2), (3, 0.3)], "answered for text 3, and 3 were sent"),
        ([(0, 0.1), (1, 0.2), (-1, 0.3)], "answered for text -1"),
        ([(0, 0.1), (1, 0.2), (None, 0.3)], "answered for text None"),
        ([(0, 0.1), (1, 0.2), (2, 10**400)], "score of"),
        ([(0, 0.1), (1, 0.2), (2, float("nan"))], "score of NaN"),
        ([(0, 0.1), (1, 0.2), (2, None)], "score of null"),
        ([(0, 0.1), (1, 0.2), (2, "high")], 'score of "high"'),
        ([(0, 0.1), (1, 0.2), (2, "0.9")], 'score of "0.9"'),
        ([(0, 0.1), (1, 0.2), (2, 1.5)], "score of 1.5"),
        ([(0, 0.1), (1, 0.2), (2, -0.5)], "score of -0.5"),
    ],
)
def test_answers_that_make_no_sense_are_errors(case: Case, pairs: Pairs, says: str) -> None:
    """They are neither guessed at nor asked for again."""
    with Loopback([case.answer(pairs)]) as server:
        error = failure(case.make(server))
    assert says in str(error)
    assert (case.provider, 1, False) == (error.provider, len(server.requests), error.retryable)
    # A fallback may answer, unless a setting declares what the scores are, and a number shows that they are not.
    declared = case.provider == "http" and says in ("score of 1.5", "score of -0.5")
    assert (declared, declared) == (error.operator, "RAG_RERANK_SCORES" in str(error))


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("http://user:pw@127.0.0.2:9/v3/rerank?key=k", "http://127.0.0.2:9/v3/rerank"),
        ("/elsewhere", "/elsewhere"),
        (f"/{KEY}/x", "/***/x"),
        ("http://[", "another address"),
        (None, "another address"),
    ],
)
def test_a_redirect_is_named_with_where_it_leads(case: Case, location: str | None, target: str) -> None:
    """It is not followed, as the key would go along; so the address is to be set. Credentials are not shown."""
    headers = {} if location is None else {"location": location}
    with Loopback([Reply(307, headers=headers)]) as server:
        error = failure(case.make(server))
    assert f"{target}; check {case.url_setting}" in str(error)
    assert "it points to" in str(error)
    assert not any(part in str(error) for part in ("user", "pw@", "key=k", KEY))
    assert (True, 1) == (error.operator, len(server.requests))


@pytest.mark.parametrize(
    "reply",
    [
        Reply(json={"results": "none", "data": "none"}),
        Reply(json={"results": [1, 2, 3], "data": [1, 2, 3]}),
        Reply(json={}),
        Reply(json=["x"]),
        Reply(json={"results": [{"index": 0, "s": 0.1}], "data": [{"index": 0, "s": 0.1}]}),
        Reply(json=[{"index": 0, "s": 0.1}]),
        Reply(json=None),
        Reply(body=b"<html>hi</html>", content_type="text/html; charset=utf-8"),
        Reply(body=b"\xff\xfe", content_type="text/plain"),
    ],
    ids=["no-list", "numbers", "empty", "list", "fields", "list-of-fields", "null", "html", "bytes"],
)
def test_answers_of_another_form_point_to_the_address(case: Case, reply: Reply) -> None:
    """Something else listens there, and no fallback may hide it."""
    with Loopback([reply]) as server:
        error = failure(case.make(server))
    assert case.url_setting in str(error)
    assert (1, False, True) == (len(server.requests), error.retryable, error.operator)


@pytest.mark.parametrize("fault", SLOW)
def test_slow_servers_are_given_up(case: Case, fault: Fault) -> None:
    """No answer, half a body, or a byte now and then, wherever: the request ends with its timeout."""
    with Loopback([Reply(json={"results": []}, fault=fault)]) as server:
        error = failure(case.make(server, tries=1, timeout_s=0.2))
    assert "did not answer within 0.2 s (see RAG_RERANK_TIMEOUT)" in str(error)
    assert error.retryable


def test_the_deadline_bounds_the_last_request(case: Case) -> None:
    """The timeout of one request is 10 s, and the whole call still ends with the deadline."""
    with Loopback([Reply(fault="stall")]) as server:
        reranker = case.make(server, deadline_s=0.3)
        started = time.monotonic()
        error = failure(reranker)
        assert time.monotonic() - started < 2.0
    assert re.search(r"deadline of 0\.\d+ s leaves no time", str(error))


def test_an_unreachable_server_is_our_error(case: Case) -> None:
    """Nobody listens: tried once more, for a fallback waits, then the message names the address and the setting."""
    with Loopback([Reply()]) as server:
        url = server.url
    error = failure(case.make(url))
    assert "no connection to" in str(error)
    assert url in str(error)
    assert case.url_setting in str(error)
    assert (None, True, 1) == (error.status, error.retryable, len(case.waits))


def test_a_server_that_keeps_failing_is_not_asked_for_a_while(case: Case) -> None:
    """The second call fails at once, without a request: its fallback need not wait. It names the last fault."""
    with Loopback([Reply(503, {"message": "down"})]) as server:
        reranker = case.make(server)
        failure(reranker)
        error = failure(reranker)
    assert "failed 5 times in a row" in str(error)
    assert "answered 503 (down)" in str(error)
    assert (5, True) == (len(server.requests), error.retryable)


def test_queries_in_a_hurry_do_not_keep_a_healthy_server_from_the_others(case: Case) -> None:
    """Deadlines that were over before, or that no answer could keep, are not the server's faults."""
    hurried = [True]

    def respond(_: Request) -> Reply:
        return Reply(fault="stall") if hurried else case.answer(GOOD)

    with Loopback(respond) as server:
        reranker = case.make(server)
        for left in [0.0] * 5 + [0.05] * 5:
            with deadline.until(reranker._retry.clock() + left):  # type: ignore[attr-defined]
                failure(reranker)
            assert left or [] == server.requests
        hurried.clear()
        assert [0.1, 0.6, 0.9] == raws(reranker)


LEAKS = {
    "401-quoting-the-key": Reply(401, {"message": f"invalid api token: {KEY}"}, headers={"X-Your-Key": KEY}),
    "500": Reply(500, {"message": f"oops {KEY}"}),
    "html": Reply(body=f"<html>{KEY}".encode(), content_type="text/html"),
    "reset": Reply(fault="reset"),
    "other-form": Reply(json={"key": KEY}),
}


@pytest.mark.parametrize("reply", LEAKS.values(), ids=LEAKS)
def test_the_key_appears_nowhere(case: Case, caplog: pytest.LogCaptureFixture, reply: Reply) -> None:
    """Not in the message, the chained exceptions' text, the traceback, a repr or a log, though a server quotes it."""
    caplog.set_level(logging.DEBUG)
    with Loopback([reply]) as server:
        reranker = case.make(server)
        raised = failure(reranker)
    seen: list[BaseException] = []
    error: BaseException | None = raised
    while error is not None:
        seen.append(error)
        error = error.__cause__ or error.__context__
    texts = [part for one in seen for part in (str(one), repr(one), repr(one.args))]
    texts += [*traceback.format_exception(raised), repr(reranker), repr(vars(reranker))]
    texts += [record.getMessage() for record in caplog.records if not record.name.startswith("httpcore")]
    assert [] == [text for text in texts if KEY in text]


def test_credentials_in_the_address_are_not_shown(case: Case) -> None:
    """A proxy's user and password in the base URL stay out of messages."""
    with Loopback([Reply(404, {"message": "m"})]) as server:
        reranker = case.make(server.url.replace("http://", "http://user:hidden@"))
        error = failure(reranker)
    assert "hidden" not in str(error) + repr(reranker)


def test_a_closed_one_says_so(case: Case) -> None:
    """In an error of ours, and nothing is sent."""
    with Loopback([case.answer(GOOD)]) as server:
        reranker = case.make(server)
        reranker.close()  # type: ignore[attr-defined]
        error = failure(reranker)
    assert "were closed" in str(error)
    assert (case.provider, False, []) == (error.provider, error.retryable, server.requests)


def test_one_connection_serves_many_requests(case: Case) -> None:
    """Connections are kept: a TLS handshake for each query would cost more than the query."""
    with Loopback([case.answer(GOOD)]) as server:
        reranker = case.make(server)
        for _ in range(3):
            raws(reranker)
        assert (3, 1) == (len(server.requests), server.connections)
