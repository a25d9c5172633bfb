"""Ingest beside a plain loop of sentence-transformers: the same model, texts and process, by turns.

The loop embeds, and upserts vectors and texts into qdrant-client's local mode, in a folder. Ours compares the
documents with the collection, chunks, embeds, and writes them into the embedded store with their BM25 vectors, too, up
to the last write; building the index is left out.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
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
    alone: dict[str, list[float]] = {name: [] for name in LOOPS}
    folder = Path(settings.data_dir)
    busy = []
    with Pipeline.from_settings(settings) as rag:
        rag.embedder.embed_documents(texts[:32])
        plain, *_ = _loop(model, texts[:32], 32, folder / "plain")
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
                plain, embedding, storing = _loop(model, texts, size, folder / "plain")
                rates[name].append(len(texts) / (embedding + storing))
                alone[name].append(len(texts) / embedding)
    shutil.rmtree(folder, ignore_errors=True)
    medians, without = (
        {name: float(np.median(values)) for name, values in measured.items()} for measured in (rates, alone)
    )
    cosines = [float(stored[str(i)] @ vector) / float(np.linalg.norm(vector)) for i, vector in enumerate(plain)]
    return {
        "documents": len(texts),
        "rounds": rounds,
        "documents_per_second": {name: round(rate, 1) for name, rate in medians.items()},
        "times_as_fast": {name: round(medians["ours"] / medians[name], 2) for name in LOOPS},
        "embedding_alone": {name: round(rate, 1) for name, rate in without.items()},
        "embedder_busy": round(float(np.median(busy)), 3),
        "cosine": {"least": round(min(cosines), 5), "mean": round(float(np.mean(cosines)), 5)},
    }


def _loop(model: SentenceTransformer, texts: Sequence[str], size: int, folder: Path) -> tuple[Any, float, float]:
    """The vectors, and how many seconds embedding and storing took."""
    from qdrant_client import QdrantClient, models

    shutil.rmtree(folder, ignore_errors=True)
    vectors = []
    embedding = storing = 0.0
    with closing(QdrantClient(path=str(folder))) as client:
        dimension = model.get_embedding_dimension()
        assert dimension is not None
        client.create_collection("plain", models.VectorParams(size=dimension, distance=models.Distance.COSINE))
        for start in range(0, len(texts), size):
            batch = list(texts[start : start + size])
            began = time.perf_counter()
            vectors.append(model.encode_document(batch, show_progress_bar=False))
            embedded = time.perf_counter()
            points = [
                models.PointStruct(id=start + place, vector=vector.tolist(), payload={"text": text})
                for place, (text, vector) in enumerate(zip(batch, vectors[-1], strict=True))
            ]
            client.upsert("plain", points)
            embedding += embedded - began
            storing += time.perf_counter() - embedded
    return np.concatenate(vectors), embedding, storing


def print_ingest(result: dict[str, Any], console: Console) -> None:
    """The rates, a line each."""
    rates, busy, cosine = result["documents_per_second"], result["embedder_busy"], result["cosine"]
    alone = result["embedding_alone"]
    lines = [
        f"ingest of {result['documents']} passages, median of {result['rounds']} rounds",
        f"  ours, with everything: {rates['ours']} documents/s, the embedder busy {busy:.0%} of the time",
        *(
            f"  sentence-transformers and qdrant-client's local mode, {name}: {rates[name]} documents/s, without "
            f"storing {alone[name]}; ours: {times} and {rates['ours'] / alone[name]:.2f} times"
            for name, times in result["times_as_fast"].items()
        ),
        f"  cosine of the two vectors of a text: mean {cosine['mean']}, least {cosine['least']}",
    ]
    console.print("\n".join(lines), highlight=False)
