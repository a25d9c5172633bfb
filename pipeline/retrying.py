"""How calls to remote models are tried again. tenacity does it here and nowhere else; SDKs' own retries are off."""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC
from typing import Protocol, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential, wait_random

from pipeline import deadline

T = TypeVar("T")


class Gate(Protocol):
    """Makes requests wait for their turn; see :class:`pipeline.traffic.Gate`."""

    def passing(
        self, until: float, *, clock: Callable[[], float], sleep: Callable[[float], None]
    ) -> AbstractContextManager[None]: ...


class RemoteError(Exception):
    """A call to a remote model failed; the embedder or reranker that made it turns this into its own error.

    ``status`` is the HTTP status if there was an answer, ``retryable`` says whether the same call may succeed later,
    ``retry_after`` how many seconds the server asks to wait before that, and ``operator`` whether a setting is wrong.
    ``final`` says that there is no use in trying again within this call, ``unconnected`` that nobody was reached,
    ``timed_out`` that the answer took longer than the try was given, and ``too_large`` that fewer or shorter texts may
    be taken. ``fault`` is the endpoint's share in it: less than
    1 where the query's deadline left it only a part of the time that a request may take, or none.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
        operator: bool = False,
        final: bool = False,
        unconnected: bool = False,
        timed_out: bool = False,
        too_large: bool = False,
        fault: float = 1.0,
    ) -> None:
        super().__init__(message)
        self.final = final
        self.unconnected = unconnected
        self.timed_out = timed_out
        self.too_large = too_large
        self.fault = fault
        self.operator = operator
        self.status = status
        self.retryable = retryable
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to try again, how long to wait before, and when to stop.

    Waits grow as first, 2 first, 4 first, ... seconds plus up to ``first_wait_s`` of jitter, so that many clients do
    not come back at one moment. What a server asks for by Retry-After replaces the growing part. ``deadline_s``
    counts from :meth:`begin` and covers every try and every wait; a try never gets more than what is left of it.
    ``connect_tries``, if given, is the number of tries without a connection after which it gives up.
    """

    timeout_s: float = 10.0
    deadline_s: float = 30.0
    tries: int = 5
    connect_tries: int | None = None
    first_wait_s: float = 0.5
    longest_wait_s: float = 8.0
    sleep: Callable[[float], None] = deadline.sleep
    clock: Callable[[], float] = time.monotonic

    def begin(self) -> float:
        """The moment, on ``clock``, at which work that starts now must have ended; the query's deadline counts, too."""
        own, query = self.clock() + min(self.deadline_s, deadline.LONGEST_S), deadline.current()
        return own if query is None else min(own, query)

    def run(self, attempt: Callable[[float], T], *, until: float, gate: Gate | None = None) -> T:
        """Result of ``attempt(timeout in seconds)``, tried again where it raises a retryable RemoteError.

        Each try waits for its turn at the ``gate``.

        Raises:
            RemoteError: the last failure. A retryable one says how often it was tried and why not again.
        """
        started = self.clock()
        unconnected = 0
        # What a try gets of a deadline of our own; one that gets less was hurried by the query.
        whole = min(self.timeout_s, self.deadline_s)

        def time_left() -> float:
            left = until - self.clock()
            if left <= 0:
                raise RemoteError("there was no time left to ask", retryable=True, fault=0.0)
            return left

        def bounded() -> T:
            nonlocal unconnected
            time_left()  # before the gate: who cannot ask any more takes nobody's turn
            turn = nullcontext() if gate is None else gate.passing(until, clock=self.clock, sleep=self.sleep)
            with turn:
                left = time_left()
                try:
                    return attempt(min(self.timeout_s, left))
                except RemoteError as error:
                    unconnected += error.unconnected
                    if error.timed_out:
                        error.fault = min(1.0, left / whole)
                    raise

        def was_last(made: int) -> bool:
            return made >= self.tries or (self.connect_tries is not None and unconnected >= self.connect_tries)

        def stop(state: RetryCallState) -> bool:
            return was_last(state.attempt_number) or self.clock() + state.upcoming_sleep >= until

        retrying = Retrying(
            sleep=self.sleep,
            stop=stop,
            wait=self._wait,
            retry=retry_if_exception(_worth_another_try),
            reraise=True,
        )
        try:
            return retrying(bounded)
        except RemoteError as error:
            if not _worth_another_try(error):
                raise
            last = error
        # Outside the except block: the chain then holds each cause once.
        made = retrying.statistics["attempt_number"]
        raise RemoteError(
            f"{last} ({self._why_not_again(last, was_last(made), until, started)}; {_times(made)} in "
            f"{self.clock() - started:.1f} s)",
            status=last.status,
            retryable=True,
            retry_after=last.retry_after,
        ) from last.__cause__

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        jitter = wait_random(0, self.first_wait_s)(state)
        if isinstance(error, RemoteError) and error.retry_after is not None:
            return error.retry_after + jitter
        return wait_exponential(multiplier=self.first_wait_s, max=self.longest_wait_s)(state) + jitter

    def _why_not_again(self, last: RemoteError, enough: bool, until: float, started: float) -> str:
        left = max(0.0, until - self.clock())
        whole = min(self.deadline_s, until - started)
        if last.retry_after is not None and last.retry_after >= left:
            return f"it asks to wait {last.retry_after:g} s, and {left:.1f} s are left of the deadline of {whole:.3g} s"
        if enough:
            return "gave up"
        return f"the deadline of {whole:.3g} s leaves no time for another try"


def _worth_another_try(error: BaseException) -> bool:
    return isinstance(error, RemoteError) and error.retryable and not error.final


def _times(count: int) -> str:
    return "tried once" if count == 1 else f"tried {count} times"


def parse_retry_after(value: str | None, *, now: float) -> float | None:
    """Seconds that a Retry-After header (RFC 9110, 10.2.3: seconds or an HTTP date) asks to wait.

    ``now`` is seconds since the epoch. None if there is no header or it cannot be read; a past date is 0.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(value)
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
