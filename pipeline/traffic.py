"""What one endpoint is asked at once, and whether it is asked at all: limits and a circuit breaker.

A gate stands before an endpoint and is shared by everyone in the process who talks to it.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

from pipeline.forking import begin_anew
from pipeline.retrying import RemoteError

T = TypeVar("T")
R = TypeVar("R")
_MINUTE_S = 60.0
_ROUNDING = 1e-6  # of many small parts of failures, added
# Longest that one Retry-After keeps all queries of the process from an address.
_LONGEST_WAIT_S = 300.0


class Gate:
    """Lets requests pass one after another. Safe to share between threads.

    ``per_minute`` bounds the requests that start within any 60 seconds, ``concurrency`` those under way. After
    ``failures`` tries in a row that failed with faults which may pass (no answer, 5xx) the gate is shut: for
    ``pause_s`` seconds every request fails at once, so that a fallback answers without a wait; then one request goes
    ahead, and opens the gate again or shuts it anew (Nygard, "Release It!", circuit breaker). A query in a hurry, whose
    deadline left a try only a part of the time that a request may take, counts as that part of a failure, and one whose
    deadline left none says nothing of the endpoint. What a server asks for by Retry-After holds for all.
    """

    def __init__(
        self,
        name: str,
        per_minute: float | None = None,
        concurrency: int = 8,
        *,
        failures: int = 5,
        pause_s: float = 15.0,
    ) -> None:
        self.concurrency = concurrency
        self._name = name
        self._per_minute = None if per_minute == math.inf else per_minute
        self._failures = failures
        self._pause_s = pause_s
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(concurrency)
        self._started: deque[float] = deque()
        self._in_a_row = 0
        self._faults = 0.0
        self._last = ""
        self._shut_until: float | None = None
        self._probing = False
        self._asked_to_wait = 0.0

    @contextmanager
    def passing(self, until: float, *, clock: Callable[[], float], sleep: Callable[[float], None]) -> Iterator[None]:
        """A request inside the block, which may have to wait for its turn, but not beyond ``until`` on ``clock``.

        Raises:
            RemoteError: the gate is shut, or the turn would come too late.
        """
        probe = self._enter(clock())
        try:
            if not self._slots.acquire(timeout=max(0.0, until - clock())):
                raise RemoteError(
                    f"{self.concurrency} requests to {self._name} are under way, and none ended before the deadline "
                    "(RAG_RERANK_CONCURRENCY)",
                    retryable=True,
                )
            try:
                self._wait_for_turn(until, clock, sleep)
                with self._watched(clock):
                    yield
            finally:
                self._slots.release()
        finally:
            if probe:
                with self._lock:
                    self._probing = False

    def _enter(self, now: float) -> bool:
        """Whether this request is the one that tries a shut gate."""
        with self._lock:
            if self._shut_until is None:
                return False
            if self._probing or now < self._shut_until:
                left = max(0.0, self._shut_until - now)
                raise RemoteError(
                    f"{self._name} failed {self._in_a_row} times in a row and is not asked for another {left:.0f} s; "
                    f"the last time: {self._last}",
                    retryable=True,
                    final=True,
                )
            self._probing = True
            return True

    def _wait_for_turn(self, until: float, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        with self._lock:
            now = clock()
            start = max(now, self._asked_to_wait)
            if self._per_minute is not None:
                allowed = max(1, int(self._per_minute))
                window = _MINUTE_S * allowed / self._per_minute
                if len(self._started) >= allowed:
                    start = max(start, self._started[-allowed] + window)
            if start > now and start > until:
                limit = "Retry-After" if start == self._asked_to_wait else "RAG_RERANK_RPM"
                raise RemoteError(
                    f"the next request to {self._name} may start in {start - now:.1f} s ({limit}), and "
                    f"{max(0.0, until - now):.1f} s are left",
                    retryable=True,
                    final=True,
                )
            if self._per_minute is not None:
                self._started.append(start)
                while len(self._started) > allowed:
                    self._started.popleft()
        if start > now:
            sleep(start - now)

    @contextmanager
    def _watched(self, clock: Callable[[], float]) -> Iterator[None]:
        try:
            yield
        except RemoteError as error:
            self._note(error, clock())
            raise
        self._note(None, clock())

    def _note(self, error: RemoteError | None, now: float) -> None:
        if error is not None and not error.fault:
            return
        with self._lock:
            if error is not None and error.retryable and error.retry_after is not None:
                # It holds for all queries of the process: a date read by a wrong clock shall not shut the address.
                self._asked_to_wait = max(self._asked_to_wait, now + min(error.retry_after, _LONGEST_WAIT_S))
            # Too many requests is an answer of a server that works.
            if error is None or not error.retryable or error.status == 429:
                self._in_a_row = 0
                self._faults = 0.0
                self._shut_until = None
                return
            self._in_a_row += 1
            self._faults += error.fault
            self._last = str(error)
            if self._faults >= self._failures - _ROUNDING:
                self._shut_until = now + self._pause_s
                self._faults = self._failures - 1  # whoever goes ahead next shuts it anew with one more


_gates: dict[tuple[str, str, float | None, int], Gate] = {}
_gates_lock = threading.Lock()


def shared_gate(name: str, url: str, per_minute: float | None, concurrency: int) -> Gate:
    """The process's one gate before an address, whatever the number of pipelines; ``name`` is for messages."""
    with _gates_lock:
        key = (name, url, per_minute, concurrency)
        if key not in _gates:
            _gates[key] = Gate(name, per_minute, concurrency)
        return _gates[key]


def _forget_in_child() -> None:
    """After a fork the parent's requests, whose places nobody would ever give back here, are not the child's."""
    global _gates_lock
    _gates_lock = threading.Lock()
    _gates.clear()


begin_anew(_forget_in_child)


def in_parts(items: Sequence[T], size: int, ask: Callable[[Sequence[T]], Sequence[R]], *, concurrency: int) -> list[R]:
    """Results of ``ask`` for parts of at most ``size`` items, several at once, in input order.

    Raises what ``ask`` raises first, an operator's fault before others; parts that have not begun by then are not asked
    for.
    """
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    if len(parts) <= 1:
        return [result for part in parts for result in ask(part)]
    with ThreadPoolExecutor(min(len(parts), concurrency), thread_name_prefix="rerank") as pool:
        futures = [pool.submit(ask, part) for part in parts]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # also where the waiting itself is interrupted
            begun = [future for future in futures if not future.cancel()]
        errors = [error for future in begun if (error := future.exception()) is not None]
        if errors:
            raise min(errors, key=lambda error: not getattr(error, "operator", False))
        return [result for future in begun for result in future.result()]
