"""A queue of things that several threads use by turns."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Equal things, each in the hands of one thread at a time; who has waited longest gets the next.

    Python's own queues give a thread that puts one back and at once gets one, as long work does between its steps, the
    same again before any that waits.
    """

    def __init__(self, things: Iterable[T]) -> None:
        self._free = deque(things)
        self._line: deque[object] = deque()
        self._changed = threading.Condition()

    def get(self) -> T:
        """One of them, as soon as there is one for this thread."""
        place = object()
        with self._changed:
            self._line.append(place)
            try:
                self._changed.wait_for(lambda: self._free and self._line[0] is place)
                return self._free.popleft()
            finally:  # also where it is interrupted
                self._line.remove(place)
                self._changed.notify_all()

    def get_spare(self) -> T | None:
        """One that nobody waits for, at once; None if there is none."""
        with self._changed:
            return self._free.popleft() if len(self._free) > len(self._line) else None

    def put(self, thing: T) -> None:
        """Gives it back."""
        with self._changed:
            self._free.append(thing)
            self._changed.notify_all()

    def qsize(self) -> int:
        """How many are in nobody's hands."""
        return len(self._free)
