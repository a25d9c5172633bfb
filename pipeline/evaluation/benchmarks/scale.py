"""How the embedded store grows: ingest, index, disk, memory, search and recall at several sizes.

Ways of keeping vectors are compared side by side: for each size all are built, and then asked in turn, round by round,
each in a new process, so that memory is its own and another load on the machine meets all alike.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.benchmarks.workers.serving import peak_mb
from pipeline.stores import bm25
from pipeline.stores.edge import EdgeStore
from pipeline.stores.storage import Storage
from pipeline.types import Chunk, Fingerprint

TURN = np.pi / 3
"""Greatest angle by which a repeated vector is turned towards another one; see :func:`copies`."""
ROUNDS = 3
_BATCH = 10_000
_GROUPS = 10
_LIMIT = 100
_FILTERS: dict[str, dict[str, Any] | None] = {"all": None, "a tenth": {"group": 3}, "half": {"group": {"lt": 5}}}
"""By the share of the chunks that they let through."""
_SCORE_ERROR = 1e-5

Found = dict[str, tuple[list[float], list[float]]]
"""By filter: milliseconds and recall (see :func:`recall`) of each query."""


def run_scale(
    sizes: Sequence[int],
    storages: Sequence[Storage],
    texts: Sequence[str],
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    work: Path,
    say: Callable[[str], None],
) -> Iterator[list[dict[str, Any]]]:
    """The rows of one size after another, one row for each way of keeping vectors."""
    for size in sizes:
        rows, folders = [], [work / f"scale-{size}-{number}" for number in range(len(storages))]
        for storage, folder in zip(storages, folders, strict=True):
            say(f"scale: {size:,} chunks, {name_of(storage)}")
            rows.append(_apart(build, size, storage, texts, vectors, folder))
        found: list[Found] = [{name: ([], []) for name in _FILTERS} for _ in storages]
        for number in range(ROUNDS):
            say(f"scale: {size:,} chunks, searches, round {number + 1} of {ROUNDS}")
            for row, storage, folder, seen in zip(rows, storages, folders, found, strict=True):
                answers, memory = _apart(ask, storage, queries, folder, number == 0)
                row["search_memory_mb"] = memory
                for name, (latencies, shares) in answers.items():
                    seen[name][0].extend(latencies)
                    seen[name][1].extend(shares)
        for row, seen in zip(rows, found, strict=True):
            row["search"] = {name: summary(*measured) for name, measured in seen.items()}
        yield rows


def name_of(storage: Storage) -> str:
    """A way of keeping vectors, for tables: "int8, on disk"."""
    return (storage.quantization or "none") + (", on disk" if storage.on_disk else "")


def _apart(work: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def build(
    size: int, storage: Storage, texts: Sequence[str], vectors: NDArray[np.float32], folder: Path
) -> dict[str, Any]:
    """Makes a store of one size; ``memory_mb`` is what the process needed at most, the index's building apart."""
    shutil.rmtree(folder, ignore_errors=True)
    before = peak_mb()
    store = EdgeStore(folder, optimize_after=10**9, storage=storage)  # the index is built once, and timed
    try:
        store.ensure_ready(Fingerprint("benchmark", vectors.shape[1], 256, 0, bm25.DESCRIPTION))
        ingest = 0.0
        for start in range(0, size, _BATCH):
            count = min(_BATCH, size - start)
            chunks = [_chunk(start + i, texts) for i in range(count)]
            rows = copies(vectors, start, count)
            begin = time.perf_counter()
            store.upsert(chunks, rows)
            ingest += time.perf_counter() - begin
        begin = time.perf_counter()
        store.optimize()
        index = time.perf_counter() - begin
    finally:
        store.close()
    return {
        "chunks": size,
        "distinct_texts": min(size, len(texts)),
        "vectors": name_of(storage),
        "oversampling": storage.oversampling if storage.quantization == "int8" else None,
        "ingest_chunks_per_s": round(size / ingest),
        "index_s": round(index, 2),
        "disk_mb": round(sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file()) / 1e6, 1),
        "memory_mb": round(peak_mb() - before),
    }


def ask(storage: Storage, queries: NDArray[np.float32], folder: Path, compare: bool) -> tuple[Found, dict[str, float]]:
    """Dense search, 100 results, with each filter. Also the memory that all of it took.

    ``compare``: with exact search too, for the recall.
    """
    before = resident_mb()
    store = EdgeStore(folder, storage=storage)
    try:
        for where in _FILTERS.values():
            store.search("", queries[0], limit=_LIMIT, mode="dense", where=where)
        found: Found = {name: ([], []) for name in _FILTERS}
        answers: dict[str, list[list[float]]] = {name: [] for name in _FILTERS}
        for name, where in _FILTERS.items():
            for query in queries:
                begin = time.perf_counter()
                candidates = store.search("", query, limit=_LIMIT, mode="dense", where=where)
                found[name][0].append((time.perf_counter() - begin) * 1e3)
                answers[name].append([candidate.score for candidate in candidates])
        memory = {kind: round(now - before[kind], 1) for kind, now in resident_mb().items()}
        for name, where in _FILTERS.items() if compare else ():  # reads all vectors: memory was looked at before
            for query, given in zip(queries, answers[name], strict=True):
                exact = store.search("", query, limit=_LIMIT, mode="dense", where=where, exact=True)
                found[name][1].append(recall([candidate.score for candidate in exact], given))
    finally:
        store.close()
    return found, memory


def recall(exact: Sequence[float], given: Sequence[float]) -> float:
    """Share of the exact results, known by their scores, best first, that was found. One that ties with the last of
    them is as good."""
    if not exact:
        return 1.0
    return sum(score >= exact[-1] - _SCORE_ERROR for score in given) / len(exact)


def summary(latencies: Sequence[float], shares: Sequence[float]) -> dict[str, float]:
    """Of all rounds together."""
    p50, p95 = np.percentile(latencies, [50, 95])
    return {
        "p50_ms": round(float(p50), 2),
        "p95_ms": round(float(p95), 2),
        "recall@100": round(float(np.mean(shares)), 4),
    }


def resident_mb() -> dict[str, float]:
    """Memory that this process holds now, in MB: its ``own``, and of ``files``, which the system takes back if need be.

    Empty where the system does not tell them apart.
    """
    with suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="ascii")
        kib = dict(re.findall(r"^(\w+):\s+(\d+) kB$", status, re.MULTILINE))
        return {"own": int(kib["RssAnon"]) * 1024 / 1e6, "files": int(kib["RssFile"]) * 1024 / 1e6}
    return {}


def copies(vectors: NDArray[np.float32], start: int, count: int) -> NDArray[np.float32]:
    """Rows ``start`` to ``start + count`` of the endless repetition: the vectors once, then copies like other texts.

    A copy is its vector turned, about the mean of all, by a random angle towards a random other one. That keeps mean
    and covariance, and chunks lie as near each other as distinct texts do: of 2,000 passages of SciFact (embedded
    model) the nearest other is 0.299 away, the tenth 0.510, the thirtieth 0.532; of any 2,000 of 50,000 made from them
    0.302, 0.498 and 0.532. Noise of one length makes a cluster of each text's copies, and HNSW loses its way between
    clusters: with 50 copies of 400 texts it found 0.963 of the exact top 100, among 20,000 distinct texts 0.999.
    """
    places = np.arange(start, start + count)
    rows = vectors[places % len(vectors)].copy()
    repeated = places >= len(vectors)
    random, made = np.random.default_rng(start), int(repeated.sum())
    mean, angles = vectors.mean(axis=0), random.uniform(0, TURN, size=(made, 1)).astype(np.float32)
    others = vectors[random.integers(len(vectors), size=made)]
    rows[repeated] = mean + np.cos(angles) * (rows[repeated] - mean) + np.sin(angles) * (others - mean)
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def _chunk(place: int, texts: Sequence[str]) -> Chunk:
    copy, text = divmod(place, len(texts))
    group = (text + copy) % _GROUPS  # the copies of a text are in all groups
    return Chunk(f"document-{place}", "0", 0, 1, texts[text], "", f"document-{place}", {"group": group})
