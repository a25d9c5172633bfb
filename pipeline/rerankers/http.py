"""Rerankers behind an HTTP endpoint, in the four request shapes that servers speak."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import httpx
from pydantic import SecretStr

from pipeline.http_client import open_client
from pipeline.remote import (
    Endpoint,
    check_key,
    check_url,
    identity_of,
    in_input_order,
    post_json,
    scores_within,
)
from pipeline.rerankers.asking import RERANK_RETRY, raw_scores
from pipeline.retrying import RemoteError, RetryPolicy
from pipeline.scoring import logit, sigmoid
from pipeline.traffic import Gate
from pipeline.types import RerankScore, ScoreScale

Shape = Literal["jina", "tei", "cohere", "voyage"]

JINA_URL = "https://api.jina.ai"


def _field(name: str) -> Callable[[Any], Any]:
    return lambda answer: answer.get(name) if isinstance(answer, Mapping) else None


_RESULTS = _field("results")


@dataclass(frozen=True, slots=True)
class _Wire:
    """How one shape asks and answers."""

    path: str
    body: Callable[[str, list[str], ScoreScale], dict[str, Any]]
    scores: ScoreScale = "probability"
    """What it answers with unless told otherwise."""
    documents: int = 1000
    """Most texts of a request."""
    results: Callable[[Any], Any] = _RESULTS
    """The list of results in an answer."""
    score: str = "relevance_score"
    """Field of a result that holds the score; the place of its text is always in "index"."""


_WIRES: Mapping[Shape, _Wire] = {
    # Jina's API; also vLLM, Infinity, llama.cpp, LocalAI and Xinference.
    "jina": _Wire(
        path="/v1/rerank",
        body=lambda query, texts, _: {"query": query, "documents": texts, "return_documents": False},
    ),
    # Hugging Face's text-embeddings-inference: 32 texts a request unless started with more.
    "tei": _Wire(
        path="/rerank",
        body=lambda query, texts, scores: {
            "query": query,
            "texts": texts,
            "raw_scores": scores == "logit",
            "truncate": True,
        },
        scores="logit",
        documents=32,
        results=lambda answer: answer,
        score="score",
    ),
    "cohere": _Wire(path="/v2/rerank", body=lambda query, texts, _: {"query": query, "documents": texts}),
    "voyage": _Wire(
        path="/v1/rerank",
        body=lambda query, texts, _: {"query": query, "documents": texts, "truncation": True},
        results=_field("data"),
    ),
}


class HttpReranker:
    """Asks a reranking endpoint; ``url`` is its base address, or the whole one if it ends in ``/rerank``.

    Whether the endpoint answers probabilities or logits is declared by ``scores`` (None: what the shape usually
    does) and never guessed: a value outside the declared range is an error, and one for the operator to mend where
    ``scores_setting`` names the setting that declares it. Blank texts, which servers refuse, are
    not sent and get the lowest score. Equal texts are sent once, long lists in parts of ``max_documents``, and what is
    too large for one request in halves.

    ``timeout_s`` bounds one request, ``deadline_s`` a whole :meth:`score` with all its parts, tries and waits.
    ``max_tokens`` is the longest pair of query and text that the model behind it reads, if that is known. ``gate``
    holds the limits and the circuit breaker before the endpoint; None makes one for this object alone.

    Raises:
        SettingsError: the key or the address cannot be one.
    """

    default_alpha = 1.0
    keeps_deadline = True

    def __init__(
        self,
        url: str,
        *,
        shape: Shape = "jina",
        model: str | None = None,
        api_key: str | None = None,
        scores: ScoreScale | None = None,
        name: str = "http",
        url_setting: str = "RAG_RERANK_URL",
        key_setting: str = "RAG_RERANK_API_KEY",
        length_setting: str = "RAG_RERANK_MAX_TOKENS",
        scores_setting: str | None = "RAG_RERANK_SCORES",
        max_documents: int | None = None,
        max_tokens: int | None = None,
        gate: Gate | None = None,
        timeout_s: float = 10.0,
        deadline_s: float = 30.0,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._wire = _WIRES[shape]
        base = httpx.URL(check_url(url, url_setting))
        path = base.path.rstrip("/")
        if not path.endswith("/rerank"):
            path = path.removesuffix("/v1").removesuffix("/v2") + self._wire.path
        self._url = str(base.copy_with(path=path))  # what follows a "?", such as a version, stays
        self._key = SecretStr(check_key(api_key, key_setting)) if api_key else None
        self.name = name
        self.model = model
        self.scale: ScoreScale = scores or self._wire.scores
        self._scores_setting = scores_setting
        self._max_documents = max_documents or self._wire.documents
        self._retry = replace(retry or RERANK_RETRY, timeout_s=timeout_s, deadline_s=deadline_s)
        self._endpoint = Endpoint(
            provider=name,
            url=self._url,
            key_setting=key_setting,
            url_setting=url_setting,
            model_setting="RAG_RERANKER_MODEL",
            timeout_setting="RAG_RERANK_TIMEOUT",
            length_setting=length_setting,
        )
        # Without a name nobody would notice that the server runs another model now.
        self.identity = identity_of(model, self._url) if model else None
        self.max_tokens = max_tokens
        self.variant = f"of {max_tokens or 'all'} tokens"
        self._gate = gate or Gate(self._endpoint.place)
        self._http = open_client()

    def __repr__(self) -> str:
        return f"HttpReranker({self._endpoint.place!r}, model={self.model!r})"

    def score(self, query: str, texts: Sequence[str]) -> list[RerankScore]:
        """See :meth:`pipeline.interfaces.Reranker.score`."""
        scores = raw_scores(
            query,
            texts,
            ask=self._ask,
            read=self._read,
            blank=0.0 if self.scale == "probability" else logit(0.0),
            provider=self.name,
            max_documents=self._max_documents,
            retry=self._retry,
            gate=self._gate,
        )
        return [RerankScore(raw, raw if self.scale == "probability" else sigmoid(raw)) for raw in scores]

    def close(self) -> None:
        """Closes the connections; closing twice is fine."""
        self._http.close()

    def _ask(self, query: str, texts: list[str], timeout_s: float) -> Any:
        body = self._wire.body(query, texts, self.scale)
        if self.model:
            body["model"] = self.model
        secret = self._key.get_secret_value() if self._key else None
        return post_json(self._http, self._url, body, endpoint=self._endpoint, secret=secret, timeout_s=timeout_s)

    def _read(self, answer: Any, count: int) -> list[float]:
        results = self._wire.results(answer)
        fields = ("index", self._wire.score)
        if not isinstance(results, list) or not all(
            isinstance(item, Mapping) and all(field in item for field in fields) for item in results
        ):
            raise RemoteError(
                f"{self._endpoint.place} answered in another form; check {self._endpoint.url_setting} and "
                "RAG_RERANK_SHAPE",
                operator=True,
            )
        pairs: Iterable[tuple[object, Any]] = ((item["index"], item[self._wire.score]) for item in results)
        low, high = (0.0, 1.0) if self.scale == "probability" else (-1e6, 1e6)
        values = in_input_order(pairs, count, self._endpoint)
        return scores_within(values, low, high, self._endpoint, kind=self.scale, setting=self._scores_setting)
