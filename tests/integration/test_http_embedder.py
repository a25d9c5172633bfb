"""The HTTP embedder against a loopback server that speaks OpenAI's wire format."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pipeline.embedders.http import HttpEmbedder
from pipeline.errors import EmbedderError, SettingsError
from pipeline.retrying import RetryPolicy
from tests.fakes import word_tokenizer
from tests.loopback import SLOW, Fault, Loopback, Reply, Request, openai_embeddings

KEY = "emb-secret-Key-1234567890"
Make = Callable[..., HttpEmbedder]


@pytest.fixture
def waits() -> list[float]:
    """Seconds that the retry policy wanted to wait."""
    return []


@pytest.fixture
def make(waits: list[float]) -> Iterator[Make]:
    """Makes embedders whose retry waits take no time."""
    with contextlib.ExitStack() as stack:

        def make_one(url: str, **arguments: Any) -> HttpEmbedder:
            embedder = HttpEmbedder(
                url, "m", tokenizer=word_tokenizer(), retry=RetryPolicy(sleep=waits.append), **arguments
            )
            return stack.enter_context(contextlib.closing(embedder))

        yield make_one


def embeddings(*items: tuple[Any, Any]) -> Reply:
    return Reply(json={"data": [{"index": index, "embedding": vector} for index, vector in items]})


def test_the_request_is_openai_s(make: Make) -> None:
    """Path, model, input and bearer key; prefixes tell queries from documents."""
    with Loopback(openai_embeddings) as server:
        embedder = make(server.url, api_key=KEY, dimension=16, query_prefix="query: ", document_prefix="passage: ")
        embedder.embed_documents(["a", "b"])
        embedder.embed_query("c")
    first, second = server.requests
    assert (first.method, first.path) == ("POST", "/v1/embeddings")
    assert first.json == {"model": "m", "input": ["passage: a", "passage: b"]}
    assert second.json == {"model": "m", "input": ["query: c"]}
    assert first.headers["authorization"] == f"Bearer {KEY}"
    assert "query: " in embedder.name


def test_a_closed_one_says_so(make: Make) -> None:
    """In an error of ours, and nothing is sent."""
    with Loopback(openai_embeddings) as server:
        embedder = make(server.url, dimension=16)
        embedder.close()
        with pytest.raises(EmbedderError, match="were closed"):
            embedder.embed_query("a")
    assert [] == server.requests


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_the_address_may_end_in_the_version(make: Make, suffix: str) -> None:
    """Both ways of writing a base URL lead to the same path, and without a key none is sent."""
    with Loopback(openai_embeddings) as server:
        make(server.url + suffix).embed_query("x")
    assert {request.path for request in server.requests} == {"/v1/embeddings"}
    assert all("authorization" not in request.headers for request in server.requests)


def test_the_dimension_is_found_by_one_call(make: Make) -> None:
    """Unless it is given."""
    with Loopback(openai_embeddings) as server:
        assert make(server.url).dimension == 16
        assert len(server.requests) == 1
        assert make(server.url, dimension=16).dimension == 16
        assert len(server.requests) == 1


def test_vectors_are_ordered_by_index_and_normalised(make: Make) -> None:
    """The server answers the last one first, and not of length 1."""
    with Loopback([embeddings((1, [0.0, 2.0]), (0, [3.0, 0.0]))]) as server:
        vectors = make(server.url, dimension=2).embed_documents(["a", "b"])
    assert vectors.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert vectors.dtype == np.float32


def test_many_texts_go_in_batches(make: Make) -> None:
    """Each of at most ``batch_size``, and blank texts not at all."""
    with Loopback(openai_embeddings) as server:
        make(server.url, dimension=16, batch_size=4).embed_documents(["a", "", "b", "c", "d", " ", "e"])
    assert [request.json["input"] for request in server.requests] == [["a", "b", "c", "d"], ["e"]]


def test_long_texts_are_cut_before_they_are_sent(make: Make) -> None:
    """To ``max_tokens`` of the tokenizer less two special tokens, at the end of a token, prefix included."""
    with Loopback(openai_embeddings) as server:
        make(server.url, dimension=16, max_tokens=10, document_prefix="p ").embed_documents(["one two " * 50])
    assert server.requests[0].json["input"] == ["p one two one two one two one"]


def test_a_wrong_dimension_is_an_error(make: Make) -> None:
    """Vectors of another model must not slip in."""
    with Loopback(openai_embeddings) as server:
        embedder = make(server.url, dimension=8)
        with pytest.raises(EmbedderError, match="gave 16 dimensions, and 8 were expected"):
            embedder.embed_query("a")


@pytest.mark.parametrize(
    "failure",
    [
        Reply(429, {"error": {"message": "slow down"}}, headers={"Retry-After": "1"}),
        Reply(503, body=b"<html>", content_type="text/html"),
        Reply(424, {"error": "out of memory", "error_type": "Inference"}),
        Reply(fault="reset"),
        Reply(body=b'{"data": [{"ind'),
        Reply(body=b"[" * 100_000),
    ],
    ids=["429", "503", "424", "reset", "truncated-json", "brackets-without-end"],
)
def test_passing_failures_are_tried_again(make: Make, waits: list[float], failure: Reply) -> None:
    """The caller sees the answer alone."""
    with Loopback([failure, failure, embeddings((0, [1.0, 0.0]))]) as server:
        assert make(server.url, dimension=2).embed_query("a").tolist() == [1.0, 0.0]
    assert len(server.requests) == 3
    assert len(waits) == 2


@pytest.mark.parametrize(
    ("status", "advice"), [(401, "RAG_EMBEDDING_API_KEY"), (404, "RAG_EMBEDDING_MODEL and RAG_EMBEDDING_URL")]
)
def test_refusals_say_what_to_check(make: Make, status: int, advice: str) -> None:
    """They are not tried again, and a server that quotes the key does not bring it into our message."""
    with Loopback([Reply(status, {"error": {"message": f"bad key {KEY}"}})]) as server:
        embedder = make(server.url, api_key=KEY, dimension=2)
        with pytest.raises(EmbedderError, match=rf"answered {status} \(bad key \*\*\*\).*{advice}") as caught:
            embedder.embed_query("a")
    assert len(server.requests) == 1
    assert KEY not in repr(caught.value) + repr(embedder) + repr(vars(embedder))


@pytest.mark.parametrize("status", [413, 422])
def test_what_is_too_large_for_one_request_goes_in_halves(make: Make, waits: list[float], status: int) -> None:
    """As to text-embeddings-inference, which takes 32 texts; a single text that is too long names the setting."""
    too_many = Reply(status, {"error": "batch size 50 > maximum allowed batch size 2", "error_type": "Validation"})

    def respond(request: Request) -> Reply:
        texts = request.json["input"]
        return too_many if len(texts) > 2 or "long" in texts else openai_embeddings(request)

    with Loopback(respond) as server:
        embedder = make(server.url, dimension=16)
        vectors = embedder.embed_documents(["a", "b", "c", "d", "e"])
        assert np.array_equal(vectors, np.stack([embedder.embed_query(text) for text in "abcde"]))
        with pytest.raises(EmbedderError, match="too long for it; set RAG_CHUNK_TOKENS"):
            embedder.embed_documents(["a", "long", "c"])
    assert [] == waits


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (embeddings((0, [1.0, 0.0]), (0, [1.0, 0.0])), "answered twice for text 0"),
        (embeddings((1, [1.0, 0.0])), "answered for text 1, and 1 were sent"),
        (embeddings(), "did not answer for text 0"),
        (embeddings((0, None)), "no list of numbers"),
        (embeddings((0, ["a", "b"])), "no list of numbers"),
        (embeddings((0, [])), "no list of numbers"),
        (embeddings((0, [float("nan"), 1.0])), "infinite or missing components"),
        (Reply(json={"data": None}), "without data"),
        (Reply(json=[]), "without data"),
        (Reply(json={"data": [1]}), "without data"),
        (Reply(body=b"hello", content_type="text/plain"), "answered text/plain, not JSON"),
    ],
)
def test_answers_that_make_no_sense_are_errors(make: Make, reply: Reply, says: str) -> None:
    """They are neither guessed at nor asked for again."""
    with Loopback([reply]) as server:
        embedder = make(server.url, dimension=2)
        with pytest.raises(EmbedderError, match=says):
            embedder.embed_query("a")
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", SLOW)
def test_a_slow_server_is_given_up(make: Make, fault: Fault) -> None:
    """The deadline covers the whole call."""
    with Loopback([Reply(fault=fault)]) as server:
        embedder = make(server.url, dimension=2, deadline_s=0.2)
        with pytest.raises(EmbedderError, match=r"did not answer within 0\.\d+ s"):
            embedder.embed_query("a")


def test_an_address_that_is_none_is_refused_at_once() -> None:
    """The message names the variable."""
    with pytest.raises(SettingsError, match="RAG_EMBEDDING_URL"):
        HttpEmbedder("localhost:8080", "m", tokenizer=word_tokenizer())


def test_what_follows_a_question_mark_stays_behind_the_path() -> None:
    """Addresses such as Azure's carry their version there."""
    for url in ("http://x/v1?api-version=2024", "http://x/?api-version=2024"):
        embedder = HttpEmbedder(url, "m", tokenizer=word_tokenizer(), dimension=2)
        assert embedder._url == "http://x/v1/embeddings?api-version=2024"
