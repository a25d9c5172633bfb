"""The HTTP client of the remote models on real sockets; tests/contracts/test_remote_reranker.py has more slow servers.

What trickles here does so for ten seconds and more. A client that waits for the end of it gets another error.
"""

from __future__ import annotations

import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from pipeline import deadline
from pipeline.http_client import open_client
from tests.loopback import Fault, Loopback, Reply, authority

TRICKLES: list[Fault] = ["trickle", "trickle-headers", "trickle-framing"]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@contextmanager
def raw_server(handle: Callable[[socketserver.BaseRequestHandler, threading.Event], None]) -> Iterator[str]:
    """Host and port of a server that speaks no HTTP: ``handle`` has the connection, and is told when to stop."""
    stopping = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(ConnectionError):  # the client has given up
                handle(self, stopping)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            stopping.set()
            server.shutdown()
            thread.join()


def test_the_limit_is_the_request_s_and_not_the_connection_s() -> None:
    """The second request takes longer than the first was allowed to, on the same connection."""
    with Loopback([Reply(json=1), Reply(json=2, late=1.1)]) as server, open_client() as client:
        client.get(server.url, timeout=1)
        assert 2 == client.get(server.url, timeout=60).json()
        assert 1 == server.connections


def test_the_query_s_deadline_counts_too() -> None:
    """When it is over, nothing is asked."""
    with Loopback([Reply()]) as server, open_client() as client:
        with deadline.until(time.monotonic()), pytest.raises(httpx.TimeoutException):
            client.get(server.url, timeout=60)
        assert [] == server.requests


def test_a_server_that_reads_too_slowly_is_given_up() -> None:
    """It takes some of the request now and then; the request would be sent in the end, and no answer come."""

    def read_slowly(handler: socketserver.BaseRequestHandler, stopping: threading.Event) -> None:
        while handler.request.recv(1 << 18) and not stopping.wait(0.01):
            pass

    with raw_server(read_slowly) as place, open_client() as client, pytest.raises(httpx.WriteTimeout):
        client.post(f"http://{place}", content=bytes(32 << 20), timeout=0.5)


def test_a_trickling_handshake_is_given_up() -> None:
    """It begins as TLS does, and never ends."""

    def shake_slowly(handler: socketserver.BaseRequestHandler, stopping: threading.Event) -> None:
        handler.request.sendall(b"\x16\x03\x03\x40\x00")
        for _ in range(1000):
            if stopping.wait(0.01):
                return
            handler.request.sendall(b"\x02")

    with raw_server(shake_slowly) as place, open_client() as client, pytest.raises(httpx.TimeoutException):
        client.get(f"https://{place}", timeout=0.3)


@pytest.fixture
def trusted(tmp_path: Path) -> Path:
    """The certificate of who certifies the https servers."""
    authority().cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    return tmp_path / "authority.pem"


def test_https_works_and_checks_the_certificate(monkeypatch: pytest.MonkeyPatch, trusted: Path) -> None:
    """Certificates of one's own are made known by SSL_CERT_FILE."""
    with Loopback([Reply(json="hello")], tls=True) as server:
        with open_client() as client, pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            client.get(server.url, timeout=60)
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        with open_client() as client:
            assert ["hello"] * 2 == [client.get(server.url, timeout=60).json() for _ in range(2)]


@pytest.mark.parametrize("fault", TRICKLES)
def test_https_is_bounded_too(monkeypatch: pytest.MonkeyPatch, trusted: Path, fault: Fault) -> None:
    """Whichever part of the answer trickles."""
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    with (
        Loopback([Reply(fault=fault)], tls=True) as server,
        open_client() as client,
        pytest.raises(httpx.TimeoutException),
    ):
        client.get(server.url, timeout=0.5)


def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not for what NO_PROXY names."""
    with Loopback([Reply(json="proxy")]) as proxy, Loopback([Reply(json="server")]) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with open_client() as client:
            assert "proxy" == client.get("http://models.invalid/x", timeout=60).json()
            assert "server" == client.get(server.url, timeout=60).json()
    assert ["http://models.invalid/x"] == [request.path for request in proxy.requests]


@pytest.mark.parametrize("fault", TRICKLES)
def test_a_proxy_is_bounded_too(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    """Whichever part of the answer trickles."""
    with Loopback([Reply(fault=fault)]) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with open_client() as client, pytest.raises(httpx.TimeoutException):
            client.get("http://models.invalid", timeout=0.3)


def test_the_way_through_a_proxy_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """An https address is asked for with CONNECT."""
    with Loopback([Reply(fault="trickle-headers")]) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with open_client() as client, pytest.raises(httpx.TimeoutException):
            client.get("https://models.invalid", timeout=0.3)
    assert ["CONNECT"] == [request.method for request in proxy.requests]
