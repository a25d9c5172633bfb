"""Until when the work at hand is wanted, for whoever waits for others on the way: a moment, or until it is given up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Event

# How often one who sleeps looks whether the work is still wanted.
_POLL_S = 0.1

LONGEST_S = 1e6
"""Nobody waits longer, which is eleven days: sockets, locks and sleeps of some systems take no number much larger."""


class DeadlinePassedError(Exception):
    """The moment has come, and what was to be computed until then is not there."""


class GivenUpError(Exception):
    """Nobody waits for the work any more."""


_given_up: ContextVar[tuple[Event, ...]] = ContextVar("given_up", default=())
_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


def current() -> float | None:
    """The moment on ``time.monotonic``; None where there is no hurry."""
    return _deadline.get()


@contextmanager
def until(moment: float) -> Iterator[None]:
    """Inside the block nothing that keeps deadlines takes longer than until ``moment``, nor until one set before."""
    before = _deadline.get()
    token = _deadline.set(moment if before is None else min(before, moment))
    try:
        yield
    finally:
        _deadline.reset(token)


@contextmanager
def unless(given_up: Event) -> Iterator[None]:
    """Inside the block :func:`check` and :func:`sleep` raise as soon as this event is set, or one given before."""
    token = _given_up.set((*_given_up.get(), given_up))
    try:
        yield
    finally:
        _given_up.reset(token)


def check() -> None:
    """Between two steps of long work.

    Raises:
        GivenUpError: the work was given up meanwhile.
    """
    if any(event.is_set() for event in _given_up.get()):
        raise GivenUpError


def sleep(seconds: float) -> None:
    """Waits before another try.

    Raises:
        GivenUpError: the work was given up meanwhile.
    """
    events = _given_up.get()
    if not events:
        time.sleep(seconds)
        return
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        check()
        events[0].wait(min(left, _POLL_S))
