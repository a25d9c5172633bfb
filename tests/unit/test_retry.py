"""The retry policy, on a clock that only its own waits and the attempts move."""

from __future__ import annotations

import math
import socket

import pytest

from pipeline.retrying import RemoteError, RetryPolicy, parse_retry_after
from pipeline.traffic import Gate


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


class Attempts:
    """Raises the given errors one after another, then answers; each attempt takes ``seconds``."""

    def __init__(self, clock: Clock, errors: list[Exception], seconds: float = 0.0) -> None:
        self.clock, self.errors, self.seconds = clock, list(errors), seconds
        self.timeouts: list[float] = []

    def __call__(self, timeout_s: float) -> str:
        self.timeouts.append(timeout_s)
        self.clock.now += self.seconds
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def busy(retry_after: float | None = None) -> RemoteError:
    return RemoteError("busy", status=429, retryable=True, retry_after=retry_after)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def policy(clock: Clock) -> RetryPolicy:
    return RetryPolicy(timeout_s=10, deadline_s=30, tries=5, sleep=clock.sleep, clock=clock.time)


def test_a_call_that_works_is_made_once(clock: Clock, policy: RetryPolicy) -> None:
    """Nothing is waited for, and the attempt gets the timeout of one request."""
    attempts = Attempts(clock, [])
    assert policy.run(attempts, until=policy.begin()) == "done"
    assert attempts.timeouts == [10]
    assert clock.waits == []


def test_waits_grow_exponentially_with_jitter(clock: Clock, policy: RetryPolicy) -> None:
    """The n-th wait is 0.5 * 2^(n-1) seconds plus up to 0.5."""
    assert policy.run(Attempts(clock, [busy() for _ in range(4)]), until=policy.begin()) == "done"
    assert len(clock.waits) == 4
    for wait, least in zip(clock.waits, [0.5, 1.0, 2.0, 4.0], strict=True):
        assert least <= wait <= least + 0.5
    assert len(set(clock.waits)) == 4


@pytest.mark.parametrize("seconds", [1e12, math.inf])
def test_a_time_without_end_is_one_that_can_be_waited_for(seconds: float) -> None:
    """Sockets and locks raise OverflowError for what is longer than they can count."""
    clock = Clock()
    policy = RetryPolicy(timeout_s=seconds, deadline_s=seconds, sleep=clock.sleep, clock=clock.time)
    attempts = Attempts(clock, [])
    gate = Gate("x", per_minute=math.inf)
    assert policy.run(attempts, until=policy.begin(), gate=gate) == "done"
    with socket.socket() as one:
        one.settimeout(attempts.timeouts[0])


def test_retry_after_is_obeyed(clock: Clock, policy: RetryPolicy) -> None:
    """What the server asks for replaces our own wait; the jitter only adds to it."""
    policy.run(Attempts(clock, [busy(retry_after=12)]), until=policy.begin())
    assert len(clock.waits) == 1
    assert 12 <= clock.waits[0] <= 12.5


def test_retry_after_beyond_the_deadline_fails_at_once(clock: Clock, policy: RetryPolicy) -> None:
    """Waiting would be in vain, and the message says how long the server wanted."""
    with pytest.raises(RemoteError, match=r"asks to wait 60 s, and 30.0 s are left of the deadline of 30 s") as caught:
        policy.run(Attempts(clock, [busy(retry_after=60)]), until=policy.begin())
    assert clock.waits == []
    assert caught.value.status == 429
    assert caught.value.retryable


def test_it_gives_up_after_the_last_try(clock: Clock, policy: RetryPolicy) -> None:
    """Five tries, and the message says so and how long they took."""
    attempts = Attempts(clock, [busy() for _ in range(9)])
    with pytest.raises(RemoteError, match=r"^busy \(gave up; tried 5 times in \d+\.\d s\)$"):
        policy.run(attempts, until=policy.begin())
    assert len(attempts.timeouts) == 5


def test_it_gives_up_earlier_where_nobody_is_reached(clock: Clock) -> None:
    """Two tries without a connection are enough, if so told; one that got an answer is no such try."""
    policy = RetryPolicy(connect_tries=2, sleep=clock.sleep, clock=clock.time)
    nobody = RemoteError("nobody", retryable=True, unconnected=True)
    attempts = Attempts(clock, [nobody for _ in range(9)])
    with pytest.raises(RemoteError, match=r"^nobody \(gave up; tried 2 times in \d+\.\d s\)$"):
        policy.run(attempts, until=policy.begin())
    assert len(attempts.timeouts) == 2
    orders: list[list[Exception]] = [[nobody, busy(), busy()], [busy(), busy(), nobody]]
    for errors in orders:
        assert policy.run(Attempts(clock, errors), until=policy.begin()) == "done"
    with pytest.raises(RemoteError, match=r"^nobody \(gave up; tried 3 times"):
        policy.run(Attempts(clock, [nobody, busy(), nobody]), until=policy.begin())


def test_the_deadline_covers_all_tries(clock: Clock, policy: RetryPolicy) -> None:
    """Slow tries end the work before the deadline, and the last one gets no more time than is left."""
    until = policy.begin()
    attempts = Attempts(clock, [busy() for _ in range(9)], seconds=9)
    with pytest.raises(RemoteError, match="the deadline of 30 s leaves no time"):
        policy.run(attempts, until=until)
    assert attempts.timeouts[:2] == [10, 10]
    assert all(timeout <= 10 for timeout in attempts.timeouts)
    assert clock.now <= until


def test_a_try_gets_what_is_left_of_the_deadline(clock: Clock, policy: RetryPolicy) -> None:
    """A second part of the work shares the deadline of the first."""
    until = policy.begin()
    clock.now += 26
    attempts = Attempts(clock, [])
    policy.run(attempts, until=until)
    assert attempts.timeouts == [4]


def test_nothing_is_asked_after_the_deadline(clock: Clock, policy: RetryPolicy) -> None:
    """Work that comes too late fails without a request."""
    until = policy.begin()
    clock.now += 31
    attempts = Attempts(clock, [])
    with pytest.raises(RemoteError, match="no time left to ask"):
        policy.run(attempts, until=until)
    assert attempts.timeouts == []


def test_other_errors_are_not_tried_again(clock: Clock, policy: RetryPolicy) -> None:
    """A refusal that time cannot heal, and a bug, come out as they are."""
    refused = RemoteError("no such model", status=404)
    with pytest.raises(RemoteError) as caught:
        policy.run(Attempts(clock, [refused]), until=policy.begin())
    assert caught.value is refused
    with pytest.raises(ZeroDivisionError):
        policy.run(Attempts(clock, [ZeroDivisionError()]), until=policy.begin())
    assert clock.waits == []


def test_the_cause_stays_in_the_chain(clock: Clock, policy: RetryPolicy) -> None:
    """The library's exception of the last try is the cause of what is raised in the end."""
    cause = OSError("socket")
    error = busy(retry_after=60)
    error.__cause__ = cause
    with pytest.raises(RemoteError) as caught:
        policy.run(Attempts(clock, [error]), until=policy.begin())
    assert caught.value.__cause__ is cause
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        ("1.5", 1.5),
        ("-3", 0.0),
        ("Sun, 06 Nov 1994 08:49:47 GMT", 10.0),
        ("Sun, 06 Nov 1994 08:49:47 -0000", 10.0),
        ("Sun, 06 Nov 1994 08:00:00 GMT", 0.0),
        ("soon", None),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", None),
        ("Wed, 21 Oct 2015 07:28:00 +9999999999", None),
        ("nan", None),
        ("inf", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    """Both forms of RFC 9110 are read; what is neither counts as no header."""
    now = 784111777.0  # Sun, 06 Nov 1994 08:49:37 GMT
    assert parse_retry_after(value, now=now) == seconds
