"""The gate before an endpoint, on a clock that only its own waits move."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.retrying import RemoteError, RetryPolicy
from pipeline.traffic import Gate, in_parts, shared_gate


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


DOWN = RemoteError("it is down", status=503, retryable=True)
WRONG = RemoteError("wrong key", status=401, operator=True)


def ask(gate: Gate, clock: Clock, error: RemoteError | None = None, within: float = 1e6) -> float:
    """One request through the gate; the moment at which it started."""
    with gate.passing(clock.now + within, clock=clock.time, sleep=clock.sleep):
        started = clock.now
        if error is not None:
            raise error
    return started


def fail(gate: Gate, clock: Clock, error: RemoteError = DOWN) -> str:
    with pytest.raises(RemoteError) as caught:
        ask(gate, clock, error)
    return str(caught.value)


@pytest.mark.parametrize("per_minute", [1, 3, 60, 0.5])
def test_no_minute_has_more_requests_than_allowed(per_minute: float) -> None:
    """In any window of 60 seconds; a limit below one lengthens the window."""
    clock, gate = Clock(), Gate("x", per_minute)
    starts = [ask(gate, clock) for _ in range(10)]
    window = 60 / min(1, per_minute)
    for first in starts:
        assert len([start for start in starts if first <= start < first + window]) <= max(1, per_minute)
    assert starts[0] == 1000.0
    assert max(starts) < 1000.0 + 10 * 60 / per_minute


def test_a_turn_that_comes_too_late_is_refused_at_once() -> None:
    """Nothing is waited for, the message names the setting, and trying again within this call is of no use."""
    clock, gate = Clock(), Gate("x", 1)
    ask(gate, clock)
    with pytest.raises(RemoteError, match=r"may start in 60\.0 s \(RAG_RERANK_RPM\), and 30\.0 s are left") as caught:
        ask(gate, clock, within=30)
    assert (1000.0, True, True) == (clock.now, caught.value.retryable, caught.value.final)


def test_what_a_server_asks_to_wait_holds_for_all() -> None:
    """Another thread's request does not run into the same refusal."""
    clock, gate = Clock(), Gate("x")
    fail(gate, clock, RemoteError("busy", status=429, retryable=True, retry_after=20))
    with pytest.raises(RemoteError, match=r"may start in 20\.0 s \(Retry-After\)"):
        ask(gate, clock, within=10)
    assert 1020.0 == ask(gate, clock)


def test_the_gate_shuts_after_failures_in_a_row_and_tries_again_after_a_pause() -> None:
    """While it is shut nothing is asked; then one request decides."""
    clock, gate = Clock(), Gate("x", failures=3, pause_s=15)
    assert ["it is down"] * 3 == [fail(gate, clock) for _ in range(3)]
    with pytest.raises(
        RemoteError, match=r"x failed 3 times in a row .* another 15 s; the last time: it is down"
    ) as shut:
        ask(gate, clock)
    assert (True, True) == (shut.value.retryable, shut.value.final)
    clock.now += 15
    assert "it is down" == fail(gate, clock)
    with pytest.raises(RemoteError, match="failed 4 times in a row"):
        ask(gate, clock)
    clock.now += 15
    ask(gate, clock)
    assert "it is down" == fail(gate, clock)
    ask(gate, clock)


def test_only_one_request_tries_a_shut_gate() -> None:
    """Others go on failing at once until it is answered."""
    clock, gate = Clock(), Gate("x", failures=1, pause_s=15)
    fail(gate, clock)
    clock.now += 15
    probe = gate.passing(clock.now + 1, clock=clock.time, sleep=clock.sleep)
    with probe, pytest.raises(RemoteError, match="failed 1 times"):
        ask(gate, clock)
    ask(gate, clock)


def test_a_probe_that_is_interrupted_lets_the_next_one_try() -> None:
    """A Ctrl-C must not shut the gate for good."""
    clock, gate = Clock(), Gate("x", failures=1, pause_s=15)
    fail(gate, clock)
    clock.now += 15
    with pytest.raises(KeyboardInterrupt), gate.passing(clock.now + 1, clock=clock.time, sleep=clock.sleep):
        raise KeyboardInterrupt
    ask(gate, clock)


@pytest.mark.parametrize("answer", [WRONG, RemoteError("busy", status=429, retryable=True), None])
def test_a_server_that_answers_is_not_broken(answer: RemoteError | None) -> None:
    """A refusal, or too many requests, ends a row of failures."""
    clock, gate = Clock(), Gate("x", failures=2, pause_s=15)
    for _ in range(3):
        assert "it is down" == fail(gate, clock)  # a shut gate would say so instead
        if answer is None:
            ask(gate, clock)
        else:
            assert str(answer) == fail(gate, clock, answer)


def asking(gate: Gate, clock: Clock, left: float, error: RemoteError) -> str:
    """What a call says that has ``left`` seconds of its query's deadline, and whose tries all fail."""

    def attempt(_: float) -> None:
        raise error

    policy = RetryPolicy(timeout_s=10, deadline_s=30, tries=1, clock=clock.time, sleep=clock.sleep)
    with pytest.raises(RemoteError) as caught:
        policy.run(attempt, until=clock.now + left, gate=gate)
    return str(caught.value)


SLOW = RemoteError("no answer in time", retryable=True, timed_out=True)


@pytest.mark.parametrize(("left", "says"), [(0, "no time left to ask"), (-1, "no time left"), (0.2, "no answer in")])
def test_a_query_in_a_hurry_shuts_no_gate(left: float, says: str) -> None:
    """Its deadline was over, or left a request less than its timeout: the endpoint may be as quick as ever."""
    clock, gate = Clock(), Gate("x", failures=2)
    for _ in range(5):
        assert says in asking(gate, clock, left, SLOW)
    ask(gate, clock)


@pytest.mark.parametrize(("left", "error"), [(30, SLOW), (0.2, DOWN)])
def test_an_endpoint_that_had_its_time_or_fails_in_a_short_one_is_to_blame(left: float, error: RemoteError) -> None:
    """Then the gate is shut."""
    clock, gate = Clock(), Gate("x", failures=2)
    for _ in range(2):
        assert str(error) in asking(gate, clock, left, error)
    assert "failed 2 times in a row" in asking(gate, clock, left, error)


def test_an_endpoint_that_hangs_is_found_out_by_queries_in_a_hurry() -> None:
    """What they waited for comes to as many whole time-outs; one answer in between, and it starts over."""
    clock, gate = Clock(), Gate("x", failures=2, pause_s=15)
    for _ in range(9):
        assert "no answer in" in asking(gate, clock, 2, SLOW)
    ask(gate, clock)
    for _ in range(10):
        assert "no answer in" in asking(gate, clock, 2, SLOW)
    assert "failed 10 times in a row" in asking(gate, clock, 2, SLOW)
    clock.now += 15
    for _ in range(5):  # a whole time-out more, by the queries that try it
        assert "no answer in" in asking(gate, clock, 2, SLOW)
    assert "failed 15 times in a row" in asking(gate, clock, 2, SLOW)


def test_a_hurried_try_of_a_shut_gate_decides_nothing() -> None:
    """It stays shut for those who may not try it, and the next one tries it."""
    clock, gate = Clock(), Gate("x", failures=1, pause_s=15)
    fail(gate, clock)
    clock.now += 15
    assert "no answer in time" in asking(gate, clock, 0.2, SLOW)
    ask(gate, clock)


def test_a_query_without_time_takes_no_turn() -> None:
    """Nothing was sent, so the minute has as many requests left as before."""
    clock, gate = Clock(), Gate("x", 1)
    asking(gate, clock, 0, DOWN)
    assert 1000.0 == ask(gate, clock)


def test_no_more_requests_are_under_way_than_allowed() -> None:
    """Of 40 at once, three at a time."""
    gate = Gate("x", concurrency=3)
    clock = Clock()
    lock, under_way, most = threading.Lock(), 0, 0

    def work(_: int) -> None:
        nonlocal under_way, most
        with gate.passing(clock.now + 1e6, clock=clock.time, sleep=clock.sleep):
            with lock:
                under_way += 1
                most = max(most, under_way)
            threading.Event().wait(0.002)
            with lock:
                under_way -= 1

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(40)))
    assert 3 == most


def test_pipelines_of_a_process_share_a_gate() -> None:
    """By address and limits."""
    one = shared_gate("x", "http://a", 60, 8)
    assert one is shared_gate("x", "http://a", 60, 8)
    assert one is not shared_gate("x", "http://b", 60, 8)


def test_parts_come_back_in_order() -> None:
    """Whichever ends first."""
    assert [2 * i for i in range(25)] == in_parts(range(25), 4, lambda part: [2 * i for i in part], concurrency=3)
    assert [] == in_parts([], 4, list, concurrency=3)


def test_an_error_in_one_part_is_the_callers() -> None:
    """The others' results are of no use then."""

    def ask_part(part: range) -> list[int]:
        if 8 in part:
            raise DOWN
        return list(part)

    with pytest.raises(RemoteError, match="it is down"):
        in_parts(range(25), 4, ask_part, concurrency=2)  # type: ignore[arg-type]


def test_of_several_errors_that_of_the_operator_is_raised() -> None:
    """A wrong key must not hide behind a part that was merely told to wait: a fallback would cover it up."""
    failed = threading.Barrier(2, timeout=10)

    def ask_part(part: range) -> list[int]:
        failed.wait()
        raise DOWN if 0 in part else RemoteError("wrong key", status=401, operator=True)

    with pytest.raises(RemoteError, match="wrong key"):
        in_parts(range(2), 1, ask_part, concurrency=2)  # type: ignore[arg-type]


def test_one_wait_does_not_shut_an_address_for_days() -> None:
    """It holds for all queries of the process, and a date may be read by a wrong clock."""
    clock, gate = Clock(), Gate("x")
    fail(gate, clock, RemoteError("busy", status=503, retryable=True, retry_after=30 * 86_400))
    with pytest.raises(RemoteError, match=r"may start in 300\.0 s \(Retry-After\)"):
        ask(gate, clock, within=10)
