"""An HTTP server on 127.0.0.1 that answers as a test says: real sockets, no patching."""

from __future__ import annotations

import json
import socket
import socketserver
import ssl
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, Literal, Self

import trustme


@cache
def authority() -> trustme.CA:
    """Who certifies the https servers here; no client trusts it without being told."""
    return trustme.CA()


@dataclass(frozen=True)
class Request:
    """What a client sent; ``headers`` have lower-case names."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Fault = Literal["reset", "stall", "stall-body", "cut", "trickle", "trickle-headers", "trickle-framing", "trickle-stall"]
SLOW: Sequence[Fault] = (
    "stall",
    "stall-body",
    "trickle",
    "trickle-headers",
    "trickle-framing",
    "trickle-stall",
)
"""Faults of which only a time limit gets a client away."""


@dataclass(frozen=True)
class Reply:
    """What to answer.

    ``fault``: "reset" breaks the connection off without an answer, "stall" sends nothing until the server stops,
    "stall-body" sends half of the body and then nothing, "cut" closes the connection in the middle of the body. Those
    with "trickle" send a byte now and then, for far longer than a test's timeout: "trickle" of the body,
    "trickle-headers" of a header's value, "trickle-framing" of the line before a chunk, "trickle-stall" of the body,
    but only for a moment, and then nothing. ``late`` seconds pass before the headers.
    """

    status: int = 200
    json: Any = None
    body: bytes | None = None
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    fault: Fault | None = None
    late: float = 0.0

    def payload(self) -> bytes:
        return self.body if self.body is not None else json.dumps(self.json).encode()


Respond = Callable[[Request], Reply]


class Loopback:
    """Serves until the ``with`` block ends; ``requests`` holds what came in.

    ``script`` is a function of the request, or replies given one after another, of which the last one stays. ``tls``
    makes it an https server, with a certificate of :func:`authority`.
    """

    def __init__(self, script: Respond | Sequence[Reply], port: int = 0, tls: bool = False) -> None:
        self.requests: list[Request] = []
        self._respond = script if callable(script) else _one_after_another(script)
        self._stopping = threading.Event()
        self._errors: list[BaseException] = []
        self.connections = 0
        """How many connections were opened."""
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", port), self._handler())
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        host, port = self._server.server_address[:2]
        self.port = int(port)
        self.url = f"{'https' if tls else 'http'}://{host!s}:{port}"
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority().issue_cert("127.0.0.1").configure_cert(context)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._server.shutdown()
        with self._lock:
            for connection in self._open:
                # Wakes the threads that wait for the next request of a kept connection.
                with suppress(OSError):  # its client is gone
                    connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()
        self._thread.join()
        if self._errors and value is None:
            raise self._errors[0]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        loopback = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                with loopback._lock:
                    loopback.connections += 1
                    loopback._open.add(self.connection)

            def finish(self) -> None:
                with loopback._lock:
                    loopback._open.discard(self.connection)
                super().finish()

            def log_message(self, *args: Any) -> None:
                pass

            def _answer(self) -> None:
                length = int(self.headers.get("content-length", 0))
                body = self.rfile.read(length)
                if len(body) < length:  # the client ran out of time in the middle of its request
                    self.close_connection = True
                    return
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, self.path, headers, body)
                with loopback._lock:
                    loopback.requests.append(request)
                loopback._send(self, loopback._respond(request))

            do_GET = do_POST = do_PATCH = do_PUT = do_HEAD = do_CONNECT = _answer  # noqa: N815 - names that http.server looks for

        return Handler

    def _send(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        if reply.fault == "reset":
            # Linger 0: closing sends RST instead of FIN.
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.close_connection = True
            return
        if reply.fault == "stall":
            self._stopping.wait()
            handler.close_connection = True
            return
        self._stopping.wait(reply.late)
        payload = reply.payload()
        handler.send_response(reply.status)
        handler.send_header("content-type", reply.content_type)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        if reply.fault is not None and reply.fault.startswith("trickle"):
            handler.close_connection = True
            self._trickle(handler, reply.fault)
            return
        handler.send_header("content-length", str(len(payload)))
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if reply.fault in {"stall-body", "cut"}:
            handler.wfile.write(payload[: len(payload) // 2])
            if reply.fault == "stall-body":
                self._stopping.wait()
            handler.close_connection = True
        else:
            handler.wfile.write(payload)

    def _trickle(self, handler: BaseHTTPRequestHandler, fault: Fault) -> None:
        if fault == "trickle-headers":
            handler.flush_headers()
            handler.wfile.write(b"X-Slow: ")
        elif fault == "trickle-framing":
            handler.send_header("transfer-encoding", "chunked")
            handler.end_headers()
            handler.wfile.write(b"1;")  # a chunk's length, and what may follow it on the line
        else:
            handler.send_header("content-length", "1000000")
            handler.end_headers()
        for _ in range(10 if fault == "trickle-stall" else 1000):
            if self._stopping.wait(0.01):
                return
            handler.wfile.write(b" ")
        if fault == "trickle-stall":
            self._stopping.wait()


class _Server(socketserver.ThreadingTCPServer):
    owner: Loopback
    request_queue_size = 64
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        # Clients that time out go away in the middle of an answer: that is what tests are about.
        if error is not None and not isinstance(error, (ConnectionError, ssl.SSLError)):
            self.owner._errors.append(error)


def _one_after_another(replies: Sequence[Reply]) -> Respond:
    left = list(replies)
    lock = threading.Lock()

    def respond(_: Request) -> Reply:
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return respond


def cohere_rerank(request: Request) -> Reply:
    """``/v2/rerank`` as Cohere answers it: best first, by the share of the query's words that a document has."""
    asked = request.json
    if request.path != "/v2/rerank" or not all(document.strip() for document in asked["documents"]):
        return Reply(400, {"message": "invalid request: list of documents must not contain only whitespace"})
    wanted = set(asked["query"].lower().split())
    results = [
        {"index": i, "relevance_score": len(wanted & set(document.lower().split())) / (len(wanted) + 1)}
        for i, document in enumerate(asked["documents"])
    ]
    results.sort(key=lambda result: -result["relevance_score"])
    return Reply(json={"id": "1", "results": results, "meta": {"api_version": {"version": "2"}}})


def rerank_server(shape: str, logits: bool = False) -> Respond:
    """A reranking endpoint of a shape: best first, by the share of the query's words that a text has.

    Refuses what the real ones refuse: another path, blank texts, and more than 32 texts for "tei".
    """
    paths = {"jina": "/v1/rerank", "tei": "/rerank", "cohere": "/v2/rerank", "voyage": "/v1/rerank"}

    def respond(request: Request) -> Reply:
        asked = request.json
        texts = asked["texts" if shape == "tei" else "documents"]
        if request.path != paths[shape] or not all(text.strip() for text in texts):
            return Reply(422, {"error": "invalid request"})
        if shape == "tei" and len(texts) > 32:
            return Reply(413, {"error": f"batch size {len(texts)} > maximum allowed batch size 32"})
        wanted = set(asked["query"].lower().split())
        shares = [len(wanted & set(text.lower().split())) / (len(wanted) + 1) for text in texts]
        scores = [6 * share - 3 for share in shares] if logits else shares
        field = "score" if shape == "tei" else "relevance_score"
        results = [{"index": i, field: score} for i, score in enumerate(scores)]
        results.sort(key=lambda result: -result[field])
        return Reply(json=results if shape == "tei" else {{"voyage": "data"}.get(shape, "results"): results})

    return respond


def openai_embeddings(request: Request) -> Reply:
    """``/v1/embeddings`` as OpenAI answers it: hashed words as vectors of 16, not of length 1, the last one first."""
    asked = request.json
    if request.path != "/v1/embeddings" or not all(text.strip() for text in asked["input"]):
        return Reply(400, {"error": {"message": "'$.input' is invalid", "type": "invalid_request_error"}})
    if any(len(text) > 8192 for text in asked["input"]):
        return Reply(400, {"error": {"message": "maximum context length exceeded"}})
    data = []
    for i, text in enumerate(asked["input"]):
        vector = [0.0] * 16
        for word in text.lower().split():
            vector[zlib.crc32(word.encode()) % 16] += 2.0
        data.append({"object": "embedding", "index": i, "embedding": vector})
    return Reply(json={"object": "list", "model": asked["model"], "data": data[::-1], "usage": {"total_tokens": 1}})
