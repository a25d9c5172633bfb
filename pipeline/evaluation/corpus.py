"""A dataset's corpus in an embedded collection of its own."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.core import Pipeline
from pipeline.evaluation.dataset import Dataset
from pipeline.interfaces import Embedder, Store
from pipeline.settings import Settings
from pipeline.stores import bm25
from pipeline.stores.edge import EdgeStore


@contextmanager
def open_corpus(
    dataset: Dataset, settings: Settings, embedder: Embedder, say: Callable[[str], None]
) -> Iterator[Store]:
    """The corpus, cut and embedded as the settings say; what an earlier evaluation ingested is found again."""
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
    with Pipeline(
        embedder=embedder,
        store=store,
        chunk_tokens=settings.chunk_tokens,
        chunk_overlap=settings.chunk_overlap,
    ) as rag:
        report = rag.ingest(dataset.documents(), progress=_progress(say))
        for failure in report.failures:
            say(f"{failure.source}: {failure.error}")
        current = {document.id for document in dataset.documents()}
        store.delete_documents([old.document_id for old in store.versions() if old.document_id not in current])
        yield store


def _progress(say: Callable[[str], None]) -> Callable[[Any], None]:
    last = time.monotonic()

    def show(step: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if step.message or now - last > 5:
            last = now
            say(step.message or f"{step.documents} documents, {step.chunks} chunks written")

    return show
