import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.inference.fair_queue import FairQueue


def in_line(queue: FairQueue[str], count: int, work: Callable[[], None]) -> list[threading.Thread]:
    """So many threads that do this work, of which each stands in line before the next one starts."""
    threads = []
    for number in range(1, count + 1):
        threads.append(threading.Thread(target=work, daemon=True))
        threads[-1].start()
        while len(queue._line) < number:
            pass
    return threads


def test_who_waits_comes_before_who_gives_back_and_takes_again() -> None:
    """As a query beside an ingest: Python's queues would let the ingest have the same one each time."""
    queue = FairQueue(["only"])
    taken = [queue.get()]

    def wait() -> None:
        queue.get()
        taken.append("waited")
        queue.put("only")

    waiting = in_line(queue, 2, wait)
    queue.put("only")
    assert queue.get_spare() is None
    taken.append(queue.get())
    for thread in waiting:
        thread.join(10)
    assert ["only", "waited", "waited", "only"] == taken


def test_a_spare_one_is_one_that_nobody_waits_for() -> None:
    """Those in line have theirs, also before they have woken up."""
    queue = FairQueue(["a", "b"])
    assert ["a", "b", None] == [queue.get_spare() for _ in range(3)]
    taken: list[str] = []
    (waiting,) = in_line(queue, 1, lambda: taken.append(queue.get()))
    with queue._changed:  # so that it cannot wake up in between
        queue.put("b")
        assert queue.get_spare() is None
        queue.put("a")
        assert "b" == queue.get_spare()
    waiting.join(10)
    assert ["a"] == taken


def test_who_is_interrupted_leaves_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while it waits: the next in line gets what comes free."""
    queue: FairQueue[str] = FairQueue([])

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(queue._changed, "wait_for", interrupted)
        with pytest.raises(KeyboardInterrupt):
            queue.get()
    queue.put("a")
    assert not queue._line
    assert "a" == queue.get()


def test_nothing_is_lost_and_nobody_waits_for_good() -> None:
    """Many threads, each with one thing of its own at a time."""
    queue = FairQueue(range(3))
    held: set[int] = set()
    lock = threading.Lock()

    def work(number: int) -> None:
        for _ in range(200):
            thing = queue.get() if number % 2 else queue.get_spare()
            if thing is None:
                continue
            with lock:
                assert thing not in held
                held.add(thing)
            with lock:
                held.remove(thing)
            queue.put(thing)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert 3 == queue.qsize()
    assert not queue._line
