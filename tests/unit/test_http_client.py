"""What the HTTP client's connections wait for at most; tests/integration/test_http_client.py has real sockets."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpcore
import pytest

from pipeline import deadline
from pipeline.http_client import _Backend, _Stream


@dataclass
class Noted(httpcore.NetworkBackend, httpcore.NetworkStream):
    """A backend and its stream: notes what it is called with, and cannot connect to ``dead`` addresses."""

    dead: tuple[str, ...] = ()
    closed: bool = False
    timeouts: list[Any] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, *args: Any) -> Noted:
        self.hosts.append(host)
        self.timeouts.append(timeout)
        if host in self.dead:
            raise httpcore.ConnectTimeout
        return self

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self.timeouts.append(timeout)
        return b""

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.timeouts.append(timeout)
        self.sent.append(buffer)

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> Noted:
        self.timeouts.append(timeout)
        return self

    def close(self) -> None:
        self.closed = True


TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
WAITS: dict[str, tuple[Callable[[httpcore.NetworkStream, float | None], Any], type[Exception]]] = {
    "read": (lambda stream, timeout: stream.read(100, timeout), httpcore.ReadTimeout),
    "write": (lambda stream, timeout: stream.write(b"x", timeout), httpcore.WriteTimeout),
    "handshake": (lambda stream, timeout: stream.start_tls(TLS, "host", timeout), httpcore.ConnectTimeout),
    "read-after-handshake": (lambda stream, timeout: stream.start_tls(TLS).read(1, timeout), httpcore.ConnectTimeout),
}


@pytest.mark.parametrize("wait", [wait for wait, _ in WAITS.values()], ids=WAITS)
def test_each_wait_gets_what_is_left(wait: Callable[[httpcore.NetworkStream, float | None], Any]) -> None:
    """The smaller of its own timeout and the rest of the request's, which shrinks."""
    plain = Noted()
    with deadline.until(time.monotonic() + 100):
        for timeout in (500.0, 500.0, None, 5.0):
            wait(_Stream(plain), timeout)
    assert 100 > plain.timeouts[0] > plain.timeouts[-2] > 5 == plain.timeouts[-1]
    wait(_Stream(plain), 500.0)
    assert 500 == plain.timeouts[-1]


@pytest.mark.parametrize(("wait", "error"), WAITS.values(), ids=WAITS)
def test_when_the_time_is_up_nothing_is_waited_for(
    wait: Callable[[httpcore.NetworkStream, float | None], Any], error: type[Exception]
) -> None:
    """A timeout of 0 would be another mode of the socket."""
    plain = Noted()
    with deadline.until(time.monotonic()), pytest.raises(error):
        wait(_Stream(plain), 500.0)
    assert [] == plain.timeouts
    # httpcore closes a connection after a read or a write that failed, but not after a handshake.
    assert plain.closed == (error is httpcore.ConnectTimeout)


def test_long_requests_are_sent_in_blocks() -> None:
    """Each with what is left then: a server that takes a little now and then is given up."""
    plain, body = Noted(), bytes(range(256)) * 50
    with deadline.until(time.monotonic() + 100):
        _Stream(plain).write(body, 500.0)
    assert body == b"".join(plain.sent)
    assert 4 == len(plain.timeouts) == len(set(plain.timeouts))
    assert sorted(plain.timeouts, reverse=True) == plain.timeouts


@pytest.fixture
def two_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name has two; none is looked up."""
    found: list[Any] = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 80, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


@pytest.mark.usefixtures("two_addresses")
def test_a_dead_address_leaves_time_for_the_next() -> None:
    """Each gets an equal share of what is left, where httpcore gives each the whole."""
    plain = Noted(dead=("::1",))
    with deadline.until(time.monotonic() + 100):
        _Backend(plain).connect_tcp("name", 80, 500.0).write(b"x")
    assert ["::1", "127.0.0.1"] == plain.hosts
    assert [b"x"] == plain.sent
    assert plain.timeouts[0] < 50 < plain.timeouts[1] < 100


@pytest.mark.usefixtures("two_addresses")
def test_when_all_addresses_are_dead_the_last_one_says_why() -> None:
    """Its own error, after each was tried once."""
    plain = Noted(dead=("::1", "127.0.0.1"))
    with pytest.raises(httpcore.ConnectTimeout):
        _Backend(plain).connect_tcp("name", 80)
    assert ["::1", "127.0.0.1"] == plain.hosts


@pytest.mark.parametrize("name", ["a" * 70, "a..b"])
def test_a_name_that_none_can_be_is_no_connection(name: str) -> None:
    """Python's codec for names raises a UnicodeError, which no one else would take for a failed connection."""
    with pytest.raises(httpcore.ConnectError, match="label"):
        _Backend(Noted()).connect_tcp(name, 80)
