import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline import deadline
from pipeline.inference.combining import Combiner


class Held:
    """Work that says when it has begun, and ends when it may."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.begun.release()
        assert self.go.wait(60)
        return [10 * item for item in items]


def test_calls_that_come_while_one_runs_are_joined() -> None:
    """One forward for all that waited, and each call gets its own results, in its order."""
    work = Held()
    combiner: Combiner[int, int] = Combiner(work, limit=100)
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(combiner.run, [1])
        assert work.begun.acquire(timeout=60)
        others = [pool.submit(combiner.run, [i, i + 1]) for i in (20, 30, 40)]
        while len(combiner._waiting) < 3:  # until all three stand in line
            pass
        work.go.set()
        assert [10] == first.result()
        assert [[200, 210], [300, 310], [400, 410]] == [other.result() for other in others]
    assert [1, 6] == [len(batch) for batch in work.batches]


def test_no_batch_is_larger_than_the_limit_unless_one_call_is() -> None:
    """So nobody waits for more than that."""
    sizes: list[int] = []

    def work(items: list[int]) -> list[int]:
        sizes.append(len(items))
        return items

    combiner: Combiner[int, int] = Combiner(work, limit=8)
    calls = [list(range(n)) for n in (3, 20, 5, 4, 8, 1) * 20]
    with ThreadPoolExecutor(8) as pool:
        assert calls == list(pool.map(combiner.run, calls))
    assert all(size <= 8 or size == 20 for size in sizes)
    assert sum(sizes) == sum(map(len, calls))


def test_an_error_reaches_only_the_call_that_caused_it() -> None:
    """Joint work that fails is done again one by one."""

    def work(items: list[int]) -> list[int]:
        if -1 in items:
            raise ValueError("no number")
        return items

    combiner: Combiner[int, int] = Combiner(work, limit=100)

    def ask(i: int) -> object:
        try:
            return combiner.run([i])
        except ValueError as error:
            return str(error)

    asked = [-1 if i % 7 == 0 else i for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        assert ["no number" if i == -1 else [i] for i in asked] == list(pool.map(ask, asked))


def test_no_items_are_no_results() -> None:
    """An empty call is answered too."""
    assert [] == Combiner(lambda items: items, limit=8).run([])


def test_after_an_interrupt_others_go_on() -> None:
    """A Ctrl-C inside the work must not leave the model locked."""
    interrupted = [True]

    def work(items: list[int]) -> list[int]:
        if interrupted.pop() if interrupted else False:
            raise KeyboardInterrupt
        return items

    combiner: Combiner[int, int] = Combiner(work, limit=8)
    with pytest.raises(KeyboardInterrupt):
        combiner.run([1])
    assert [2] == combiner.run([2])


@pytest.mark.parametrize("error", [KeyboardInterrupt, deadline.GivenUpError])
def test_an_interrupted_thread_leaves_the_others_their_calls(error: type[BaseException]) -> None:
    """Ctrl-C reaches one thread, or its work is given up: what it had taken along is worked on by the others."""
    waiting = threading.Semaphore(0)
    go = threading.Event()
    interrupted = threading.Event()

    def work(items: list[int]) -> list[int]:
        if items == [1]:
            waiting.release()
            assert go.wait(60)
        elif not interrupted.is_set():
            interrupted.set()
            raise error
        return [10 * item for item in items]

    combiner: Combiner[int, int] = Combiner(work, limit=100)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(combiner.run, [1])
        assert waiting.acquire(timeout=60)
        others = {i: pool.submit(combiner.run, [i]) for i in (2, 3, 4)}
        while len(combiner._waiting) < 3:  # until all three stand in line
            pass
        go.set()
        assert [10] == first.result(60)
        errors = {i: other.exception(60) for i, other in others.items()}
    assert 1 == sum(isinstance(found, error) for found in errors.values())
    assert all([10 * i] == others[i].result() for i, found in errors.items() if found is None)
    assert not combiner._waiting


def test_a_call_waits_no_longer_than_its_deadline() -> None:
    """Nor is it worked on then: the model is there for those who still want an answer."""
    work = Held()
    combiner: Combiner[int, int] = Combiner(work, limit=100)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(combiner.run, [1])
        assert work.begun.acquire(timeout=60)
        with deadline.until(time.monotonic() + 0.01), pytest.raises(deadline.DeadlinePassedError):
            combiner.run([2])
        patient = pool.submit(combiner.run, [3])
        while not combiner._waiting:  # until it stands in line
            pass
        work.go.set()
        assert ([10], [30]) == (first.result(60), patient.result(60))
    assert [[1], [3]] == work.batches
    with deadline.until(time.monotonic() + 60):
        assert [40] == combiner.run([4])
