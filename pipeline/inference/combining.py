"""Calls of several threads on one model, answered together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from pipeline import deadline

T = TypeVar("T")
R = TypeVar("R")


class Combiner(Generic[T, R]):
    """Gives the items of all calls that wait to ``work`` at once, and each call its own results.

    While one thread works, the others' calls pile up; the next to work takes them along, first come first served, up to
    ``limit`` items, so that nobody waits for more than that and what it finds running. A call with more items than
    that goes alone. Where joint work fails, each call is worked on alone, so that it gets its own error.

    A call waits no longer than until :func:`pipeline.deadline.current`: then nobody needs its results any more, and
    what the model is spared is there for the others.
    """

    def __init__(self, work: Callable[[list[T]], Sequence[R]], limit: int) -> None:
        self._work = work
        self._limit = limit
        self._turn = threading.Condition()
        self._busy = False
        self._waiting: deque[_Call[T, R]] = deque()

    def run(self, items: Sequence[T]) -> list[R]:
        """One result an item, in input order.

        Raises:
            DeadlinePassedError: others had the model until then.
            Exception: whatever ``work`` raises.
        """
        call: _Call[T, R] = _Call(list(items))
        latest = deadline.current()
        with self._turn:
            self._waiting.append(call)
        while True:
            with self._turn:
                left = None if latest is None else max(0.0, latest - time.monotonic())
                self._turn.wait_for(lambda: call.done or not self._busy, left)
                if call.done:
                    break
                if latest is not None and time.monotonic() >= latest:
                    call.given_up = True
                    if call in self._waiting:  # else it is being worked on
                        self._waiting.remove(call)
                    raise deadline.DeadlinePassedError
                self._busy = True
                calls = self._next()
            try:
                self._answer(calls)
            except BaseException:  # this thread is interrupted: the others' calls are for the next of them
                with self._turn:
                    self._waiting.extendleft(one for one in reversed(calls) if not one.given_up)
                    self._waiting.remove(call)
                    self._busy = False
                    self._turn.notify_all()
                raise
            with self._turn:
                for one in calls:
                    one.done = True
                self._busy = False
                self._turn.notify_all()
        if call.error is not None:
            raise call.error
        return call.results

    def _next(self) -> list[_Call[T, R]]:
        calls = [self._waiting.popleft()]
        size = len(calls[0].items)
        while self._waiting and size + len(self._waiting[0].items) <= self._limit:
            calls.append(self._waiting.popleft())
            size += len(calls[-1].items)
        return calls

    def _answer(self, calls: list[_Call[T, R]]) -> None:
        try:
            results = self._work([item for call in calls for item in call.items])
        except deadline.GivenUpError:  # by who called here: the others' calls are theirs
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers get it
            if len(calls) == 1:
                calls[0].error = error
            else:
                for call in calls:
                    self._answer([call])
            return
        start = 0
        for call in calls:
            call.results = list(results[start : start + len(call.items)])
            start += len(call.items)


class _Call(Generic[T, R]):
    def __init__(self, items: list[T]) -> None:
        self.items = items
        self.results: list[R] = []
        self.error: Exception | None = None
        self.done = False
        self.given_up = False
