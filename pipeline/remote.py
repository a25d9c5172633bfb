"""What all remote models share: how they ask for JSON, errors in plain words, order by index."""

from __future__ import annotations

import hashlib
import json
import math
import re
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import httpx

from pipeline.errors import RerankerError, SettingsError
from pipeline.retrying import RemoteError, parse_retry_after

R = TypeVar("R")
# Answers below 500 that may be others soon: time-out, a fault behind the server (text-embeddings-inference, where the
# model fails), too early, too many.
_PASSING = frozenset({408, 424, 425, 429})
# What servers say that refuse a request for its size with 400 or 422, and not with 413.
_TOO_LARGE = re.compile(
    r"(?=.*(batch|tokens?\b|length|texts|documents|items|inputs?\b))"
    r".*(too (long|large|many)|\bmax(imum)?\b|exceed|at most|(longer|larger|less|fewer|more) than)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Whom we talk to, and by which settings the operator can change it: for messages only."""

    provider: str
    url: str
    key_setting: str
    url_setting: str
    model_setting: str
    timeout_setting: str
    length_setting: str

    @property
    def place(self) -> str:
        """Provider and host, without credentials that the address may carry."""
        url = httpx.URL(self.url)
        port = f":{url.port}" if url.port else ""
        return f"{self.provider} at {url.scheme}://{url.host}{port}"


def check_url(url: str, setting: str) -> str:
    """The address without a trailing slash.

    Raises:
        SettingsError: it is no http or https address.
    """
    try:
        parsed = httpx.URL(url.strip())
    except httpx.InvalidURL as error:
        raise SettingsError(f"{setting}: not an address: {error}") from error
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise SettingsError(f"{setting}: needs an address that starts with http:// or https://")
    return str(parsed).rstrip("/")


def without_secrets(url: str) -> str:
    """The address without user, password and query, which may hold a key: fit to be shown and kept."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def identity_of(model: str, url: str) -> str:
    """Whose scores an endpoint gives: the model at an address, fit to be shown and kept.

    What follows a "?" may choose the model, and may hold a key: it tells endpoints apart without being shown.
    """
    query = urlsplit(url).query
    mark = f" ({hashlib.blake2b(query.encode(), digest_size=4).hexdigest()})" if query else ""
    return f"{model} at {without_secrets(url)}{mark}"


def check_key(key: str, setting: str) -> str:
    """The key without white space around it.

    Raises:
        SettingsError: it holds what no header can carry. HTTP libraries would quote the whole key in their error.
    """
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise SettingsError(f"{setting}: a key is one word of ASCII characters; check how it was copied")
    return key


def post_json(
    client: httpx.Client, url: str, body: object, *, endpoint: Endpoint, secret: str | None, timeout_s: float
) -> Any:
    """The JSON that the endpoint answers; the key goes along as a bearer token.

    Raises:
        RemoteError: the client is closed, or there was no answer, a refusal, or no JSON.
    """
    check_open(client, endpoint)
    headers = {"authorization": f"Bearer {secret}"} if secret else {}
    try:
        response = client.post(url, json=body, headers=headers, timeout=timeout_s)
    except httpx.HTTPError as error:
        failure = chained(network_error(endpoint, error, timeout_s=timeout_s), error, secret)
    else:
        try:
            answer = response.json()
            broken = False
        except (ValueError, RecursionError):  # broken JSON or broken UTF-8, or brackets without end
            answer, broken = response.text, True
        if response.is_success and not broken:
            return answer
        if response.is_success:
            failure = not_json(endpoint, response.status_code, response.headers.get("content-type"))
        else:
            failure = status_error(endpoint, response.status_code, body=answer, headers=response.headers, secret=secret)
    # Outside the except block, so that an exception which quotes the key is not kept as context.
    raise failure


def in_halves(texts: Sequence[str], ask: Callable[[Sequence[str]], list[R]]) -> list[R]:
    """Results of ``ask`` for the texts, a result for each; what is too large for one request goes in halves.

    Raises:
        RemoteError: what ``ask`` raises otherwise, or for a single text.
    """
    try:
        return ask(texts)
    except RemoteError as error:
        if not error.too_large or len(texts) == 1:
            raise
    half = len(texts) // 2
    return [result for part in (texts[:half], texts[half:]) for result in in_halves(part, ask)]


# -------------------------------------------------------------------- errors


def check_open(client: httpx.Client, endpoint: Endpoint) -> None:
    """A closed client would raise a plain RuntimeError.

    Raises:
        RemoteError: it is closed.
    """
    if client.is_closed:
        raise RemoteError(f"the connections to {endpoint.place} were closed; make a new pipeline")


def status_error(
    endpoint: Endpoint, status: int, *, body: object, headers: Mapping[str, str], secret: str | None
) -> RemoteError:
    """The error for an answer that is none: what the server said, and what to check.

    ``headers`` are the answer's, with lower-case names. ``secret`` is cut out of what the server said: some quote
    the key they refuse.
    """
    said = _detail(body, secret)
    retryable = status in _PASSING or status >= 500
    too_large = status == 413 or (status in (400, 422) and _TOO_LARGE.match(said) is not None)
    advice = (
        f"a text or the query is too long for it; set {endpoint.length_setting} to what it takes" if too_large else ""
    )
    advice = advice or _advice(endpoint, status, _target(endpoint, headers, secret))
    return RemoteError(
        f"{endpoint.place} answered {status}{f' ({said})' if said else ''}: {advice}",
        status=status,
        retryable=retryable,
        operator=not retryable and not too_large,
        too_large=too_large,
        retry_after=parse_retry_after(headers.get("retry-after"), now=time.time()) if retryable else None,
    )


def _target(endpoint: Endpoint, headers: Mapping[str, str], secret: str | None) -> str:
    """Where a redirect leads, without what may be a key."""
    location = headers.get("location")
    if not location:
        return "another address"
    try:
        place = without_secrets(urljoin(endpoint.url, location))
    except ValueError:  # it is none
        return "another address"
    return (place.replace(secret, "***") if secret else place)[:200]


def _advice(endpoint: Endpoint, status: int, target: str) -> str:
    if status == 429:
        return "too many requests or the quota is used up; ask less often or raise the plan"
    if status >= 500 or status in _PASSING:
        return "the fault is on the server's side; try later"
    if 300 <= status < 400:
        return f"it points to {target}; check {endpoint.url_setting}"
    return {
        400: f"it does not accept the request; check {endpoint.model_setting}",
        401: f"the key is missing or wrong; check {endpoint.key_setting}",
        402: "the account has no credit left; check its billing",
        403: f"the key may not use this model; check {endpoint.key_setting} and {endpoint.model_setting}",
        404: f"no such model or address; check {endpoint.model_setting} and {endpoint.url_setting}",
        422: f"it does not accept the request; check {endpoint.model_setting}",
    }.get(status, f"check {endpoint.url_setting} and {endpoint.model_setting}")


def network_error(endpoint: Endpoint, error: httpx.HTTPError, *, timeout_s: float) -> RemoteError:
    """The error for a request that got no whole answer."""
    if isinstance(error, httpx.TimeoutException):
        message = f"{endpoint.place} did not answer within {timeout_s:.3g} s (see {endpoint.timeout_setting})"
        unconnected = isinstance(error, httpx.ConnectTimeout)
        return RemoteError(message, retryable=True, unconnected=unconnected, timed_out=True)
    if _certificate_refused(error):
        return RemoteError(
            f"{endpoint.place}: its certificate is not trusted; check {endpoint.url_setting}, or make your "
            "certificates known by SSL_CERT_FILE",
            operator=True,
        )
    if isinstance(error, httpx.ConnectError):
        message = f"no connection to {endpoint.place}; check the network and {endpoint.url_setting}"
        return RemoteError(message, retryable=True, unconnected=True)
    if isinstance(error, (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)):
        return RemoteError(f"{endpoint.place} broke the connection off; try later", retryable=True)
    return RemoteError(
        f"{endpoint.place} cannot be asked ({type(error).__name__}); check {endpoint.url_setting}", operator=True
    )


def _certificate_refused(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def not_json(endpoint: Endpoint, status: int, content_type: str | None) -> RemoteError:
    """The error for an answer that claims success and is not JSON: cut off, or another kind of server."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind.endswith("json"):
        return RemoteError(f"{endpoint.place} sent broken JSON; try later", status=status, retryable=True)
    what = kind or "something without a content type"
    return RemoteError(
        f"{endpoint.place} answered {what}, not JSON; check {endpoint.url_setting}", status=status, operator=True
    )


def chained(error: RemoteError, cause: BaseException, secret: str | None) -> RemoteError:
    """``error`` with the library's exception as its cause, unless that one's text holds the key."""
    if not secret or (secret not in str(cause) and secret not in repr(cause)):
        error.__cause__ = cause
    return error


def reranker_error(error: RemoteError, provider: str) -> RerankerError:
    """What a remote reranker raises for a failed call; to be raised outside the ``except`` block."""
    failure = RerankerError(
        str(error), provider=provider, status=error.status, retryable=error.retryable, operator=error.operator
    )
    failure.__cause__ = error.__cause__
    return failure


def _detail(body: object, secret: str | None) -> str:
    """What a server says in an error's body: the message field of the usual shapes, or the text, on one line."""
    while isinstance(body, Mapping):
        body = next((body[key] for key in ("message", "error", "detail") if body.get(key)), "")
    if isinstance(body, list):  # FastAPI's: each has the whole request in it, too, which is none of the message
        body = "; ".join(str(one["msg"]) for one in body if isinstance(one, Mapping) and one.get("msg"))
    text = " ".join(body.split()) if isinstance(body, str) else ("" if body is None else str(body))
    if secret:
        text = text.replace(secret, "***")
    if text.startswith("<"):  # a proxy's or a portal's page says nothing in one line
        return ""
    return text if len(text) <= 300 else text[:300] + "..."


# -------------------------------------------------------------------- answers


def in_input_order(items: Iterable[tuple[object, Any]], count: int, endpoint: Endpoint) -> list[Any]:
    """Values of (index, value) pairs, ordered by index.

    Raises:
        RemoteError: an index is missing, repeated, out of range or no integer.
    """
    found: dict[int, Any] = {}
    for index, value in items:
        if type(index) is not int or not 0 <= index < count:
            raise RemoteError(f"{endpoint.place} answered for text {index!r}, and {count} were sent")
        if index in found:
            raise RemoteError(f"{endpoint.place} answered twice for text {index}")
        found[index] = value
    if len(found) != count:
        missing = next(i for i in range(count) if i not in found)
        raise RemoteError(f"{endpoint.place} did not answer for text {missing}; {len(found)} of {count} came back")
    return [found[i] for i in range(count)]


def scores_within(
    values: Sequence[object], low: float, high: float, endpoint: Endpoint, *, kind: str, setting: str | None = None
) -> list[float]:
    """The values as floats.

    ``setting`` is where the operator declares what they are: if there is one and a number lies beyond it, no fallback
    is to hide that.

    Raises:
        RemoteError: one is no number from ``low`` to ``high``.
    """
    numbers = []
    for value in values:
        number = _number(value)
        if not low <= number <= high:  # NaN, too, is not
            declared = setting is not None and math.isfinite(number)
            raise RemoteError(
                f"{endpoint.place} gave a score of {json.dumps(value, ensure_ascii=False, default=str)[:60]}, which is "
                f"no {kind}" + (f"; {setting} says which of the two it answers with" if declared else ""),
                operator=declared,
            )
        numbers.append(number)
    return numbers


def _number(value: object) -> float:
    """The value as a float; NaN if it is no number."""
    try:
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an integer beyond all floats
        return math.nan
