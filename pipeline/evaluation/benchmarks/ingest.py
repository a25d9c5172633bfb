"""Ingest beside a plain loop of sentence-transformers: the same model, texts and process, by turns.

The loop only embeds. Ours reads the documents, compares them with the collection, chunks, embeds, and writes them into
the embedded store with their BM25 vectors, too, up to the last write; building the index is left out.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core import Pipeline
from pipeline.settings import Settings
from pipeline.types import Document

if TYPE_CHECKING:
    from rich.console import Console
    from sentence_transformers import SentenceTransformer

LOOPS = {"one by one": 1, "batches of 32": 32}
"""Plain loops, by how many texts go into a call of ``encode_document``; 32 is the library's own batch."""


def measure_ingest(
    texts: Sequence[str], embedder: str, settings: Settings, *, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Documents per second of each way, the median of all rounds, and how much the vectors differ.

    ``texts`` are short enough to be a chunk each. ``settings`` name the embedder for ours, and a data directory in
    which nothing else is. Loading the models, and a first batch each, are not counted.
    """
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(embedder, device="cpu")
    rates: dict[str, list[float]] = {"ours": [], **{name: [] for name in LOOPS}}
    busy = []
    with Pipeline.from_settings(settings) as rag:
        rag.embedder.embed_documents(texts[:32])
        plain = _loop(model, texts[:32], 32)
        for _ in range(rounds):
            say("ingest: ours")
            start = time.perf_counter()
            report = rag.ingest(Document(id=str(i), text=text) for i, text in enumerate(texts))
            profile = report.profile
            assert profile is not None
            rates["ours"].append(len(texts) / (time.perf_counter() - start - profile.indexing))
            busy.append(profile.embedder_busy)
            stored = {chunk.document_id: vector for chunk, vector in rag.store.chunks_with_vectors()}
            rag.delete([str(i) for i in range(len(texts))])
            for name, size in LOOPS.items():
                say(f"ingest: sentence-transformers, {name}")
                start = time.perf_counter()
                plain = _loop(model, texts, size)
                rates[name].append(len(texts) / (time.perf_counter() - start))
    shutil.rmtree(Path(settings.data_dir), ignore_errors=True)
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    cosines = [float(stored[str(i)] @ vector) / float(np.linalg.norm(vector)) for i, vector in enumerate(plain)]
    return {
        "documents": len(texts),
        "rounds": rounds,
        "documents_per_second": {name: round(rate, 1) for name, rate in medians.items()},
        "times_as_fast": {name: round(medians["ours"] / medians[name], 2) for name in LOOPS},
        "embedder_busy": round(float(np.median(busy)), 3),
        "cosine": {"least": round(min(cosines), 5), "mean": round(float(np.mean(cosines)), 5)},
    }


def _loop(model: SentenceTransformer, texts: Sequence[str], size: int) -> Any:
    return np.concatenate(
        [
            model.encode_document(list(texts[start : start + size]), show_progress_bar=False)
            for start in range(0, len(texts), size)
        ]
    )


def print_ingest(result: dict[str, Any], console: Console) -> None:
    """The rates, a line each."""
    rates, busy, cosine = result["documents_per_second"], result["embedder_busy"], result["cosine"]
    lines = [
        f"ingest of {result['documents']} passages, median of {result['rounds']} rounds",
        f"  ours, with everything: {rates['ours']} documents/s, the embedder busy {busy:.0%} of the time",
        *(
            f"  sentence-transformers, {name}, embedding alone: {rates[name]} documents/s; ours: {times} times"
            for name, times in result["times_as_fast"].items()
        ),
        f"  cosine of the two vectors of a text: mean {cosine['mean']}, least {cosine['least']}",
    ]
    console.print("\n".join(lines), highlight=False)
