"""The worker's half of the protocol: a request a line on stdin, an answer a line on stdout, both JSON.

A system is an object with ``load()`` (opens models and what is stored in its folder), ``ingest(passages)`` and
``query(text, top_n)`` (passage ids, best first). Standard library only, because peers run in environments of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

TOP_K = 10


class System(Protocol):
    """What is measured."""

    def load(self) -> None:
        """Opens the models and what earlier processes stored."""

    def ingest(self, passages: list[dict[str, str]]) -> None:
        """Embeds and stores passages, each with ``id`` and ``text``."""

    def query(self, text: str, top_n: int) -> list[str]:
        """Ids of the best ``TOP_K`` of ``top_n`` reranked candidates."""


def serve(make: Callable[[dict[str, Any]], System]) -> None:
    """Answers requests until standard input ends; the first line is the configuration.

    A request that fails is answered with ``error`` and does not end the process.
    """
    # Libraries print on stdout too: they get stderr instead.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    system: System | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if system is None:
                system = make(request)
                answer: dict[str, Any] = {}
            else:
                answer = _answer(system, request)
        except Exception as error:  # noqa: BLE001 - whatever a peer raises is a result
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(system: System, request: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    match request["op"]:
        case "load":
            system.load()
        case "ingest":
            system.ingest(request["passages"])
        case "query":
            return _queries(system, request["texts"], request["top_n"], request["clients"])
        case "info":
            return {"peak_mb": peak_mb(), "versions": _versions(request["packages"])}
        case other:
            raise ValueError(f"unknown request {other!r}")
    return {"seconds": time.perf_counter() - start}


def _queries(system: System, texts: list[str], top_n: int, clients: int) -> dict[str, Any]:
    errors: list[str] = []

    def one(text: str) -> tuple[list[str], float]:
        start = time.perf_counter()
        ids: list[str] = []
        try:
            ids = system.query(text, top_n)
        except Exception as error:  # noqa: BLE001 - not safe between threads is a result
            errors.append(f"{type(error).__name__}: {error}"[:300])
        return ids, (time.perf_counter() - start) * 1e3

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(one, texts))
    seconds = time.perf_counter() - start
    return {
        "rankings": [ids for ids, _ in found],
        "latencies_ms": [latency for _, latency in found],
        "seconds": seconds,
        "errors": errors,
    }


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes)."""
    # Not ru_maxrss on Linux: a child begins with its parent's.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / 1e6 if sys.platform == "darwin" else used * 1024 / 1e6


def _versions(packages: list[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
