"""The HTTP client of all remote models: the timeout of a request bounds the whole of it."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Iterable
from typing import Any

import httpcore
import httpx

from pipeline import deadline
from pipeline.forking import check_process

# httpcore's write gives each of its sends the whole timeout, so it gets only as much at once as goes in one send: a
# socket that can be written to has more room than this (Linux: a third of its buffer, which has 16 KiB or more).
_SEND_BYTES = 4096


def open_client() -> httpx.Client:
    """An HTTP client whose timeout, where a request gives one number, bounds that whole request.

    httpx alone bounds each single wait: a server that sends a byte now and then, in whatever part of its answer, is
    never given up. Here each connect, handshake, send and receive gets what is left of the limit, and no more than
    the query's deadline leaves. Only these have limits of their own: the system's name lookup, answers that are
    streamed, and single TLS records inside the TLS of an ``https://`` proxy. Proxies and certificates are those of
    the environment, as httpx reads it.

    A forked child gets a ForkedError: on the parent's connections it would read the parent's answers.
    """
    return _Client()


class _Client(httpx.Client):
    def __init__(self) -> None:
        # A redirected POST would lose its body or carry its key elsewhere.
        super().__init__(follow_redirects=False)
        self._pid = os.getpid()
        # httpx has no parameter for a network backend, and transports of our own would need its reading of the proxy
        # variables. What is there is wrapped, not just set, so that other names in a new release fail at once.
        for transport in (self._transport, *self._mounts.values()):
            if transport is not None:  # NO_PROXY
                pool = transport._pool  # type: ignore[attr-defined]
                pool._network_backend = _Backend(pool._network_backend)

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        check_process(self._pid, "this HTTP client")
        limit = request.extensions.get("timeout", {}).get("read")
        if limit is None:
            return super().send(request, **options)
        # The connection may serve another thread next, so the moment goes along with this thread's call.
        with deadline.until(time.monotonic() + limit):
            return super().send(request, **options)


def _left(timeout: float | None, no_time: type[httpcore.TimeoutException]) -> float | None:
    """Seconds until the deadline, at most ``timeout``."""
    end = deadline.current()
    if end is None:
        return timeout
    left = end - time.monotonic()
    if left <= 0:  # 0 would mean: do not wait
        raise no_time("the request's time is up")
    return left if timeout is None else min(timeout, left)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, plain: httpcore.NetworkBackend) -> None:
        self._plain = plain

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = _addresses(host, port)
        while True:
            address = addresses.pop(0)
            left = _left(timeout, httpcore.ConnectTimeout)
            # Where one address swallows everything, as IPv6 sometimes does, the next ones still get their share.
            share = left if left is None else left / (1 + len(addresses))
            try:
                return _Stream(self._plain.connect_tcp(address, port, share, local_address, socket_options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if not addresses:
                    raise


def _addresses(host: str, port: int) -> list[str]:
    """The addresses of a name; plain ``connect_tcp`` would give each of them the whole timeout."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that none can be
        raise httpcore.ConnectError(str(error)) from error
    # Back to text by getnameinfo, which keeps an IPv6 address's scope.
    return [socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0] for *_, address in found]


class _Stream(httpcore.NetworkStream):
    """Another stream, whose every wait ends with the deadline."""

    def __init__(self, plain: httpcore.NetworkStream) -> None:
        self._plain = plain

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._plain.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _SEND_BYTES):
            self._plain.write(buffer[start : start + _SEND_BYTES], _left(timeout, httpcore.WriteTimeout))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            left = _left(timeout, httpcore.ConnectTimeout)
        except httpcore.ConnectTimeout:
            self.close()  # as the plain one does where it fails
            raise
        return _Stream(self._plain.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._plain.get_extra_info(info)

    def close(self) -> None:
        self._plain.close()
