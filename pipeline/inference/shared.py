"""Models of which a process needs one, whatever the number of their users."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pipeline.forking import begin_anew

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass
class _Slot(Generic[V]):
    """A model, or the promise of one: two different ones may be loaded at the same time, one only once."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    made: V | None = None


class Shared(Generic[K, V]):
    """Models by what tells them apart. After a fork those are the parent's: a child that asks for one gets its own.

    While one is loaded, those that are there answer. For the whole life of a process: it is never freed.
    """

    def __init__(self) -> None:
        self._forget()
        begin_anew(self._forget)

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The process's one model of this key; ``make`` loads it where there is none. What it raises comes out."""
        with self._lock:
            slot = self._slots[key]
        with slot.lock:
            if slot.made is None:
                slot.made = make()
            return slot.made

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._slots: defaultdict[K, _Slot[V]] = defaultdict(_Slot)
