"""The moment by which the query at hand wants its answer, for whoever waits for others on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

LONGEST_S = 1e6
"""Nobody waits longer, which is eleven days: sockets, locks and sleeps of some systems take no number much larger."""


class DeadlinePassed(Exception):  # noqa: N818 - nothing is wrong, it is late
    """The moment has come, and what was to be computed until then is not there."""


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
