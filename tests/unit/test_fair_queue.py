import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.inference.fair_queue import FairQueue


def waits(queue: FairQueue[str], count: int) -> None:
    """Until so many threads stand in line."""
    while len(queue._line) < count:
        pass


def test_who_waits_comes_before_who_gives_back_and_takes_again() -> None:
    """As a query beside an ingest: Python's queues would let the ingest have the same one each time."""
    queue = FairQueue(["only"])
    taken = [queue.get()]

    def wait() -> None:
        queue.get()
        taken.append("waited")
        queue.put("only")

    with ThreadPoolExecutor(2) as pool:
        for number in (1, 2):
            pool.submit(wait)
            waits(queue, number)
        queue.put("only")
        assert queue.get_spare() is None
        taken.append(queue.get())
    assert ["only", "waited", "waited", "only"] == taken


def test_a_spare_one_is_one_that_nobody_waits_for() -> None:
    """Those in line have theirs, also before they have woken up."""
    queue = FairQueue(["a", "b"])
    first, second = queue.get_spare(), queue.get_spare()
    assert (["a", "b"], None) == ([first, second], queue.get_spare())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(queue.get)
        waits(queue, 1)
        with queue._changed:  # so that it cannot wake up in between
            queue.put("b")
            assert queue.get_spare() is None
            queue.put("a")
            assert queue.get_spare() == "b"
        assert "a" == waiting.result(60)


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
