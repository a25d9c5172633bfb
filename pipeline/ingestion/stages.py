"""Running the stages of an ingest side by side, with bounded queues between them."""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from pipeline import deadline

T = TypeVar("T")

# How often a blocked stage looks whether the other side has given up.
_POLL_S = 0.1
_END: Any = object()


class Stopwatch:
    """How long each stage was at work, in seconds; waiting for the stages beside it does not count.

    Each stage is timed by one thread.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def working(self, stage: str) -> Iterator[None]:
        """Counts the time of the ``with`` block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def reading(self, items: Iterable[T], stage: str) -> Iterator[T]:
        """The same items; counts the time that it takes to make them."""
        iterator = iter(items)
        while True:
            with self.working(stage):
                item = next(iterator, _END)
            if item is _END:
                return
            yield item


@contextmanager
def read_ahead(items: Iterable[T], size: int) -> Iterator[Iterator[T]]:
    """Gives the same items, produced by a thread of their own that is at most ``size`` items ahead.

    An exception of the producer is raised by the iterator, after the items before it. Leaving the ``with`` block stops
    the thread, within an item where the producer calls :func:`pipeline.deadline.check`.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=size)
    stop = threading.Event()
    failure: list[BaseException] = []

    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return

    def produce() -> None:
        try:
            with deadline.unless(stop):
                for item in items:
                    if stop.is_set():
                        return
                    put(item)
        except BaseException as error:  # noqa: BLE001  raised again in the consumer's thread
            failure.append(error)
        finally:
            put(_END)

    # In the context of the caller, who may give up, too.
    thread = threading.Thread(target=contextvars.copy_context().run, args=[produce], name="rag-read", daemon=True)
    thread.start()

    def take() -> Iterator[T]:
        while (item := ready.get()) is not _END:
            yield item
        if failure:
            raise failure[0]

    try:
        yield take()
    finally:
        stop.set()
        thread.join()


@contextmanager
def write_behind(work: Callable[[T], None], size: int, given_up: threading.Event) -> Iterator[Callable[[T], None]]:
    """Gives a function that hands items to ``work`` in a thread of its own, at most ``size`` waiting.

    Items are worked on in order. The first exception of ``work`` stops it and is raised by the next call, or at the
    end of the ``with`` block. Leaving the block waits until all is done; leaving it by an exception drops what waits,
    and sets ``given_up``, an event that stages share: none of them goes on trying what fails.
    """
    waiting: queue.Queue[Any] = queue.Queue(maxsize=size)
    stop = threading.Event()
    failure: list[BaseException] = []

    def consume() -> None:
        with deadline.unless(given_up):
            take()

    def take() -> None:
        while (item := waiting.get()) is not _END:
            if stop.is_set():
                continue
            try:
                work(item)
            except BaseException as error:  # noqa: BLE001  raised again in the caller's thread
                failure.append(error)
                stop.set()

    def put(item: T) -> None:
        if failure:
            raise failure[0]
        waiting.put(item)

    # In the context of the caller, who may give up, too.
    thread = threading.Thread(target=contextvars.copy_context().run, args=[consume], name="rag-write", daemon=True)
    thread.start()
    try:
        yield put
        waiting.put(_END)
        thread.join()
    except BaseException:  # one that comes while the last of it is waited for, too
        stop.set()
        given_up.set()
        while thread.is_alive():
            with suppress(queue.Full):
                waiting.put(_END, timeout=_POLL_S)
            thread.join(_POLL_S)
        raise
    if failure:
        raise failure[0]
