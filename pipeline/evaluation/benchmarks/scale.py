"""How the embedded store grows: ingest, index, disk, memory, search and recall at several sizes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.benchmarks.workers.serving import peak_mb
from pipeline.stores import bm25
from pipeline.stores.edge import EdgeStore
from pipeline.types import Chunk, Fingerprint

NOISE = 0.3
"""Length of the noise that is added to a repeated unit vector, whose cosine with the first then is about 0.96."""
_BATCH = 10_000
_GROUPS = 10
_LIMIT = 100


def run_scale(
    sizes: Sequence[int],
    texts: Sequence[str],
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    work: Path,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Each size in a process of its own, so that memory is its own."""
    results = []
    for size in sizes:
        say(f"scale: {size:,} chunks")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            results.append(pool.submit(measure_size, size, texts, vectors, queries, work / f"scale-{size}").result())
    return results


def measure_size(
    size: int, texts: Sequence[str], vectors: NDArray[np.float32], queries: NDArray[np.float32], folder: Path
) -> dict[str, Any]:
    """One size. Dense search, 100 results; the filter keeps a tenth of the chunks."""
    shutil.rmtree(folder, ignore_errors=True)
    before = peak_mb()
    store = EdgeStore(folder, optimize_after=10**9)  # the index is built once, and timed
    try:
        store.ensure_ready(Fingerprint("benchmark", vectors.shape[1], 256, 0, bm25.DESCRIPTION))
        ingest = 0.0
        for start in range(0, size, _BATCH):
            count = min(_BATCH, size - start)
            chunks = [_chunk(start + i, texts) for i in range(count)]
            rows = noisy(vectors, start, count)
            begin = time.perf_counter()
            store.upsert(chunks, rows)
            ingest += time.perf_counter() - begin
        begin = time.perf_counter()
        store.optimize()
        index = time.perf_counter() - begin
        searches = {name: _search(store, queries, where) for name, where in _FILTERS.items()}
    finally:
        store.close()
    return {
        "chunks": size,
        "distinct_texts": min(size, len(texts)),
        "ingest_chunks_per_s": round(size / ingest),
        "index_s": round(index, 2),
        "disk_mb": round(sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file()) / 1e6, 1),
        "memory_mb": round(peak_mb() - before),
        "search": searches,
    }


_FILTERS: dict[str, dict[str, Any] | None] = {"unfiltered": None, "filtered": {"group": 3}}


def noisy(vectors: NDArray[np.float32], start: int, count: int) -> NDArray[np.float32]:
    """Rows ``start`` to ``start + count`` of the endless repetition: the vectors once, then copies with noise."""
    places = np.arange(start, start + count)
    rows = vectors[places % len(vectors)].copy()
    repeated = places >= len(vectors)
    random = np.random.default_rng(start)
    noise = random.standard_normal((int(repeated.sum()), vectors.shape[1])).astype(np.float32)
    rows[repeated] += noise * np.float32(NOISE / np.sqrt(vectors.shape[1]))
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def _chunk(place: int, texts: Sequence[str]) -> Chunk:
    text = texts[place % len(texts)]
    return Chunk(f"document-{place}", "0", 0, 1, text, "", f"document-{place}", {"group": place % _GROUPS})


def _search(store: EdgeStore, queries: NDArray[np.float32], where: dict[str, Any] | None) -> dict[str, Any]:
    latencies, shares = [], []
    store.search("", queries[0], limit=_LIMIT, mode="dense", where=where)
    for query in queries:
        begin = time.perf_counter()
        found = store.search("", query, limit=_LIMIT, mode="dense", where=where)
        latencies.append((time.perf_counter() - begin) * 1e3)
        exact = store.search("", query, limit=_LIMIT, mode="dense", where=where, exact=True)
        truth = {candidate.chunk.document_id for candidate in exact}
        shares.append(len(truth & {candidate.chunk.document_id for candidate in found}) / max(1, len(truth)))
    p50, p95 = np.percentile(latencies, [50, 95])
    return {
        "p50_ms": round(float(p50), 2),
        "p95_ms": round(float(p95), 2),
        "recall@100": round(float(np.mean(shares)), 4),
    }
