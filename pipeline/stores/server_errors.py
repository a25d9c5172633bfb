"""What goes wrong between here and a Qdrant server, in plain words: what happened, where, and what to check."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

from pipeline.errors import StoreError, StoreUnavailableError

# Faults that pass: the same request may succeed a moment later.
_PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})

_NOT_QDRANT = "the answer is not one of Qdrant's; check that RAG_QDRANT_URL leads to Qdrant"


class MissingCollectionError(StoreError):
    """The server answers and has no such collection."""


class UnreadableAnswerError(StoreError):
    """The answer is none of Qdrant's, or was cut off on its way."""


class DeniedError(StoreError):
    """The server does not accept the API key, or the key may not do this."""


@contextmanager
def explained(doing: str, address: str) -> Iterator[None]:
    """Turns what the client raises into a StoreError about doing something at an address."""
    try:
        yield
    except StoreError:
        raise
    except UnexpectedResponse as error:
        raise _of_status(error, f"could not {doing} at {address}") from error
    except ResourceExhaustedResponse as error:
        raise StoreUnavailableError(
            f"could not {doing} at {address}: too many requests; try again in {error.retry_after_s} s",
            retry_after=error.retry_after_s,
        ) from error
    except ResponseHandlingException as error:
        raise _of_transport(error.source, f"could not {doing} at {address}") from error
    except ApiException as error:
        raise StoreError(f"could not {doing} at {address}: {error}") from error
    except (ValueError, AssertionError) as error:
        # The client's local mode (":memory:") has no status codes. Of a server's answers these are the ones that the
        # client could not read: no JSON, or JSON without a result.
        if "not found" in str(error):
            raise MissingCollectionError(f"could not {doing} at {address}: {error}") from error
        raise UnreadableAnswerError(f"could not {doing} at {address}: {_NOT_QDRANT} ({str(error)[:200]})") from error


def _of_status(error: UnexpectedResponse, what: str) -> StoreError:
    status = error.status_code or 0
    said = _message(error.content)
    if status in (401, 403):
        return DeniedError(
            f"{what}: the server refused the API key (HTTP {status}: {said}); check RAG_QDRANT_API_KEY, and that the "
            "key may do this"
        )
    if status == 404 and "doesn't exist" in said:
        return MissingCollectionError(f"{what}: {said}")
    if status == 404:
        return StoreError(f"{what}: nothing of Qdrant's is there (HTTP 404); check RAG_QDRANT_URL")
    if 300 <= status < 400:
        goes = error.headers.get("location", "another address")
        return StoreError(f"{what}: it leads on to {goes} (HTTP {status}); set RAG_QDRANT_URL to the final address")
    if status in _PASSING_STATUS:
        return StoreUnavailableError(
            f"{what}: the server failed (HTTP {status}: {said}); see its log, or try again later"
        )
    return StoreError(f"{what}: the server refused (HTTP {status}: {said})")


def _of_transport(source: Exception, what: str) -> StoreError:
    if isinstance(source, httpx.TimeoutException):
        return StoreUnavailableError(
            f"{what}: no answer in time; the server may be busy or out of reach (RAG_QDRANT_TIMEOUT)"
        )
    if isinstance(source, httpx.TransportError):
        return StoreUnavailableError(f"{what}: no connection ({source}); is Qdrant running there? Check RAG_QDRANT_URL")
    return UnreadableAnswerError(f"{what}: {_NOT_QDRANT}")


def _message(content: bytes) -> str:
    """The error text of Qdrant's JSON answer, or the start of whatever it is."""
    try:
        text = str(json.loads(content)["status"]["error"])
    except (ValueError, KeyError, TypeError):
        text = content.decode("utf-8", "replace")
    return " ".join(text.split())[:300] or "no reason given"
