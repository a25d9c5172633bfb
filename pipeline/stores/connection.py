"""The connection to a Qdrant server: each request either once, or again and again until a deadline."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar
from urllib.parse import urlsplit

from qdrant_client import QdrantClient

from pipeline.deadline import LONGEST_S
from pipeline.errors import SettingsError, StoreError, StoreUnavailableError
from pipeline.forking import check_process
from pipeline.remote import check_key, without_secrets
from pipeline.retrying import RemoteError, RetryPolicy
from pipeline.stores.server_errors import UnreadableAnswerError, explained

T = TypeVar("T")


def patience(deadline_s: float) -> RetryPolicy:
    """Tries for so many seconds, however often that is, with up to 10 s between two of them."""
    return RetryPolicy(deadline_s=deadline_s, tries=1_000_000, longest_wait_s=10.0)


def connect(url: str, *, api_key: str | None = None, timeout: float = 30.0) -> QdrantClient:
    """A client for a server; no request is made yet. ``timeout``: seconds that one request may take, rounded up.

    Raises:
        SettingsError: the address is none, or holds a password.
    """
    if api_key:
        api_key = check_key(api_key, "RAG_QDRANT_API_KEY")
    shown = url.rpartition("@")[2].partition("?")[0]
    wrong = SettingsError(f"RAG_QDRANT_URL: {shown!r} is no address such as http://localhost:6333")
    # As a header: given as ``api_key`` to a plain http address the client warns at every start, compose files too.
    headers = {"api-key": api_key} if api_key else None
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if "@" in parts.netloc or "@" in parts.path:
            raise SettingsError("RAG_QDRANT_URL holds a user name or password: put the key into RAG_QDRANT_API_KEY")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise wrong
        return QdrantClient(
            url=parts.geturl(),
            headers=headers,
            timeout=max(1, math.ceil(min(timeout, LONGEST_S))),
            check_compatibility=False,
        )
    except ValueError as error:  # brackets, blanks, a port beyond all
        raise wrong from error


class Connection:
    """A client, and how its requests for one collection are made. Safe to share between threads."""

    def __init__(self, client: QdrantClient, collection: str, retry: RetryPolicy) -> None:
        self.client = client
        self.local = client.init_options.get("location") == ":memory:"
        self.address = ":memory:" if self.local else without_secrets(str(client.init_options.get("url")))
        self._collection = collection
        self._retry = retry
        # The client's local mode, other than its connections, is not safe to share between threads.
        self._turn: AbstractContextManager[Any] = threading.Lock() if self.local else nullcontext()
        self._answered = False
        self._closed = False
        self._pid = os.getpid()

    def once(self, doing: str, request: Callable[[], T]) -> T:
        """The request's result. What the client raises becomes a StoreError that tells what was being done.

        Raises:
            ForkedError: the client is that of the parent process, whose answers would come here.
            StoreError: the connection is closed, or the request failed.
        """
        check_process(self._pid, f"the connection to {self.address}")
        if self._closed:
            raise StoreError(f"collection {self._collection} at {self.address} was closed")
        try:
            with self._turn, explained(f"{doing} collection {self._collection}", self.address):
                result = request()
        except StoreUnavailableError:
            raise
        except StoreError:
            self._answered = True  # with a refusal, such as that there is no such collection
            raise
        self._answered = True
        return result

    def patiently(self, doing: str, request: Callable[[], T]) -> T:
        """A request that may be repeated without harm, and is, where the fault may pass, until the deadline.

        A server that has not answered once is not waited for: that it is not running, or is elsewhere, should be said
        at once.

        Raises:
            StoreUnavailableError: the last fault, with how often it was tried and for how long.
        """

        def attempt(_: float) -> T:
            try:
                return self.once(doing, request)
            except StoreUnavailableError as error:
                raise RemoteError(str(error), retryable=True, retry_after=error.retry_after) from error.__cause__
            except UnreadableAnswerError as error:  # of one who has answered well before
                raise RemoteError(str(error), retryable=True) from error.__cause__

        if not self._answered:
            return self.once(doing, request)
        try:
            return self._retry.run(attempt, until=self._retry.begin())
        except RemoteError as error:
            raise StoreUnavailableError(f"{error}; what was written before is safe, run it again to go on") from error

    def close(self) -> None:
        """Closes the client. Closing twice is fine."""
        if not self._closed:
            self._closed = True
            self.client.close()
