"""Cohere's rerank models through the official SDK."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from json import JSONDecodeError
from typing import TYPE_CHECKING, Any

import httpx
from pydantic import SecretStr

from pipeline.http_client import open_client
from pipeline.remote import (
    Endpoint,
    chained,
    check_key,
    check_open,
    check_url,
    identity_of,
    in_input_order,
    network_error,
    not_json,
    scores_within,
    status_error,
)
from pipeline.rerankers.asking import RERANK_RETRY, raw_scores
from pipeline.retrying import RemoteError, RetryPolicy
from pipeline.traffic import Gate
from pipeline.types import RerankScore, ScoreScale

if TYPE_CHECKING:
    from cohere import ClientV2

_KEY_SETTING = "RAG_COHERE_API_KEY (or COHERE_API_KEY)"
_URL_SETTING = "RAG_COHERE_BASE_URL"
# Where the API cuts a document unless told otherwise.
_MAX_TOKENS = 4096
PUBLIC_URL = "https://api.cohere.com"


class CohereReranker:
    """``/v2/rerank``: relevance scores in [0, 1], taken as they are.

    Blank texts are not sent, because the API refuses a list of them, and get 0. Equal texts are sent once. Longer
    lists than ``max_documents`` (the API advises against more than 1,000) are sent in parts, and what is too large for
    one request in halves.

    ``timeout_s`` bounds one request, ``deadline_s`` a whole :meth:`score` with all its parts, tries and waits.
    ``max_tokens_per_doc`` is where the API cuts a document, so longer texts go to it in windows; None leaves it to the
    API, which cuts at 4,096. ``priority`` (0 is the highest) says how early a request is handled under load. ``gate``
    holds the limits and the circuit breaker before the endpoint; None makes one for this object alone.

    Raises:
        SettingsError: the key or the address cannot be one.
    """

    name = "cohere"
    scale: ScoreScale = "probability"
    default_alpha = 1.0
    keeps_deadline = True

    def __init__(
        self,
        *,
        api_key: str,
        model: str = "rerank-v3.5",
        base_url: str | None = None,
        timeout_s: float = 10.0,
        deadline_s: float = 30.0,
        max_documents: int = 1000,
        max_tokens_per_doc: int | None = None,
        priority: int | None = None,
        gate: Gate | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        self.model = model
        self._key = SecretStr(check_key(api_key, _KEY_SETTING))
        # The SDK adds the version to the address by itself.
        self._url = check_url(base_url or PUBLIC_URL, _URL_SETTING).removesuffix("/v2").removesuffix("/v1")
        self._retry = replace(retry or RERANK_RETRY, timeout_s=timeout_s, deadline_s=deadline_s)
        self._max_documents = max_documents
        self._endpoint = Endpoint(
            provider="Cohere",
            url=self._url,
            key_setting=_KEY_SETTING,
            url_setting=_URL_SETTING,
            model_setting="RAG_RERANKER_MODEL",
            timeout_setting="RAG_RERANK_TIMEOUT",
            length_setting="RAG_COHERE_MAX_TOKENS_PER_DOC",
        )
        self.identity = identity_of(model, self._url)
        self.max_tokens = max_tokens_per_doc or _MAX_TOKENS
        self.variant = f"of {self.max_tokens} tokens"
        options: dict[str, Any] = {"max_tokens_per_doc": max_tokens_per_doc, "priority": priority}
        self._options = {name: value for name, value in options.items() if value is not None}
        self._gate = gate or Gate(self._endpoint.place)
        self._http = open_client()
        self._lock = threading.Lock()
        self._client: ClientV2 | None = None

    def __repr__(self) -> str:
        return f"CohereReranker(model={self.model!r}, base_url={self._endpoint.place!r})"

    def score(self, query: str, texts: Sequence[str]) -> list[RerankScore]:
        """See :meth:`pipeline.interfaces.Reranker.score`; ``raw`` and ``probability`` are the relevance score."""
        scores = raw_scores(
            query,
            texts,
            ask=self._ask,
            read=self._read,
            blank=0.0,
            provider=self.name,
            max_documents=self._max_documents,
            retry=self._retry,
            gate=self._gate,
        )
        return [RerankScore(score, score) for score in scores]

    def close(self) -> None:
        """Closes the connections; closing twice is fine."""
        self._http.close()

    def _ask(self, query: str, documents: list[str], timeout_s: float) -> Any:
        check_open(self._http, self._endpoint)
        # The SDK's import takes over half a second, so it waits for the first call.
        from cohere.core.api_error import ApiError
        from cohere.core.parse_error import ParsingError

        secret = self._key.get_secret_value()
        try:
            return self._sdk().rerank(
                model=self.model,
                query=query,
                documents=documents,
                request_options={"timeout": timeout_s, "max_retries": 0},
                **self._options,
            )
        except ApiError as error:
            headers, status = error.headers or {}, error.status_code or 0
            if 200 <= status < 300:
                failure = not_json(self._endpoint, status, headers.get("content-type"))
            else:
                failure = status_error(self._endpoint, status, body=error.body, headers=headers, secret=secret)
            failure = chained(failure, error, secret)
        except httpx.HTTPError as error:
            failure = chained(network_error(self._endpoint, error, timeout_s=timeout_s), error, secret)
        except (JSONDecodeError, UnicodeDecodeError) as error:
            failure = chained(not_json(self._endpoint, 200, "application/json"), error, secret)
        except (ParsingError, TypeError) as error:  # TypeError: the SDK unpacks the answer's parts unseen
            message = f"{self._endpoint.place} sent JSON of an unknown form; check {_URL_SETTING}"
            failure = chained(RemoteError(message, operator=True), error, secret)
        # Outside the except blocks, so that an exception which quotes the key is not kept as context either.
        raise failure

    def _sdk(self) -> ClientV2:
        with self._lock:
            if self._client is None:
                from cohere import ClientV2

                self._client = ClientV2(
                    api_key=self._key.get_secret_value,  # asked for at each request, kept nowhere else
                    base_url=self._url,
                    timeout=self._retry.timeout_s,
                    max_retries=0,
                    httpx_client=self._http,
                    log_warning_experimental_features=False,
                )
            return self._client

    def _read(self, response: Any, count: int) -> list[float]:
        # The SDK builds its answer objects without checking them: anything may be missing.
        results = getattr(response, "results", None)
        if not isinstance(results, list):
            raise RemoteError(f"{self._endpoint.place} answered without results; check {_URL_SETTING}", operator=True)
        pairs = [(getattr(item, "index", None), getattr(item, "relevance_score", None)) for item in results]
        if pairs and all(score is None for _, score in pairs):
            raise RemoteError(f"{self._endpoint.place} answered in another form; check {_URL_SETTING}", operator=True)
        return scores_within(in_input_order(pairs, count, self._endpoint), 0.0, 1.0, self._endpoint, kind="probability")
