"""``rag eval``: a labelled dataset through the real pipeline, for any search modes and rerankers."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from pipeline.build import build_embedder, build_reranker
from pipeline.core import Pipeline
from pipeline.errors import SettingsError
from pipeline.evaluation.dataset import Dataset, read_dataset
from pipeline.evaluation.metrics import mean_metrics
from pipeline.interfaces import Embedder, Reranker
from pipeline.settings import Settings
from pipeline.stores import bm25
from pipeline.stores.edge import EdgeStore
from pipeline.types import Hit, SearchMode

# Without a reranker a deeper list costs nothing, and recall@100 needs it.
_RECALL_DEPTH = 100


def evaluate_dataset(
    folder: Path,
    settings: Settings,
    *,
    rerankers: Sequence[str] | None = None,
    searches: Sequence[str] | None = None,
    max_queries: int | None = None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Every search mode with every reranker; the result is as ``rag eval --json`` prints it.

    The corpus goes into an embedded collection of its own under the data directory, cut as the settings say; a
    second evaluation finds it there. A document's place in a ranking is that of its best chunk.

    Raises:
        SettingsError: the folder is no dataset, or a name is unknown.
    """
    dataset = read_dataset(folder, max_queries)
    modes = [_search_mode(name) for name in searches or [settings.search]]
    # Built before any work, so that a wrong name or a missing key is found at once.
    names = list(dict.fromkeys(rerankers or ["none", settings.reranker]))
    built = {name: build_reranker(settings.updated(reranker=name)) for name in names}
    embedder = build_embedder(settings)
    # Another model or chunking gets a collection of its own, so that switching back costs nothing.
    made_with = (
        dataset.folder.resolve(),
        embedder.name,
        settings.chunk_tokens,
        settings.chunk_overlap,
        bm25.DESCRIPTION,
    )
    key = hashlib.blake2b(repr(made_with).encode(), digest_size=6).hexdigest()
    store = EdgeStore(settings.data_dir / "eval" / f"{dataset.name}-{key}")
    runs = []
    with Pipeline(
        embedder=embedder,
        store=store,
        chunk_tokens=settings.chunk_tokens,
        chunk_overlap=settings.chunk_overlap,
    ) as base:
        report = base.ingest(dataset.documents(), progress=_progress(say))
        for failure in report.failures:
            say(f"{failure.source}: {failure.error}")
        current = {document.id for document in dataset.documents()}
        store.delete_documents([old.document_id for old in store.versions() if old.document_id not in current])
        documents = store.count().documents
        for mode in modes:
            for name in names:
                say(f"{mode} + {name}: {len(dataset.queries)} queries")
                runs.append(_run(dataset, settings, embedder, base, built[name], mode))
    return {"dataset": dataset.name, "queries": len(dataset.queries), "documents": documents, "runs": runs}


def _run(
    dataset: Dataset,
    settings: Settings,
    embedder: Embedder,
    base: Pipeline,
    reranker: Reranker | None,
    mode: SearchMode,
) -> dict[str, Any]:
    top_n = max(settings.top_n, _RECALL_DEPTH) if reranker is None else settings.top_n
    rag = Pipeline(
        embedder=embedder,
        store=base.store,
        reranker=reranker,
        search=mode,
        hybrid_fusion=settings.hybrid_fusion,
        top_n=top_n,
        top_k=top_n,
        alpha=settings.alpha,
        chunk_tokens=settings.chunk_tokens,
        chunk_overlap=settings.chunk_overlap,
    )
    # Loading a model is not part of a query's latency.
    rag.query(next(iter(dataset.queries.values())))
    rankings, latencies = {}, []
    for id_, text in dataset.queries.items():
        start = time.perf_counter()
        result = rag.query(text)
        latencies.append((time.perf_counter() - start) * 1e3)
        rankings[id_] = unique_documents(result.hits)
    p50, p95 = np.percentile(latencies, [50, 95])
    return {
        "search": mode,
        "reranker": "none" if reranker is None else reranker.name,
        **{name: round(value, 5) for name, value in mean_metrics(dataset.qrels, rankings).items()},
        "latency_ms": {"p50": round(float(p50), 2), "p95": round(float(p95), 2)},
    }


def unique_documents(hits: Iterable[Hit]) -> list[str]:
    """Document ids in the order of their best chunk."""
    return list(dict.fromkeys(hit.document_id for hit in hits))


def _search_mode(name: str) -> SearchMode:
    for mode in get_args(SearchMode):
        if name == mode:
            return mode  # type: ignore[no-any-return]
    raise SettingsError(f"--search {name!r}: there are {', '.join(get_args(SearchMode))}")


def _progress(say: Callable[[str], None]) -> Callable[[Any], None]:
    last = time.monotonic()

    def show(step: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if step.message or now - last > 5:
            last = now
            say(step.message or f"{step.documents} documents, {step.chunks} chunks written")

    return show
