"""The collection that a dataset is evaluated on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.build import build_store
from pipeline.core import Pipeline
from pipeline.errors import SettingsError
from pipeline.evaluation.dataset import Dataset, check_documents, read_dataset
from pipeline.evaluation.irds import PREFIX, read_ir_dataset
from pipeline.evaluation.questions import read_questions, resolve
from pipeline.ingestion.run import Progress
from pipeline.interfaces import Embedder, Store
from pipeline.settings import Settings
from pipeline.stores import bm25
from pipeline.stores.edge import EdgeStore

Say = Callable[[str], None]


def open_dataset(
    name: str, settings: Settings, embedder: Embedder, *, max_queries: int | None, say: Say
) -> tuple[Dataset, Store]:
    """The dataset called ``name``, and the store with its documents; the caller closes it.

    A folder in BEIR's layout and a name of ``ir_datasets`` (``irds:NAME``) are ingested into an embedded collection of
    their own under the data directory, cut as the settings say; a second evaluation finds it there. A file of
    questions is asked of the collection of the settings, as it is.

    Raises:
        SettingsError: there is no such dataset, or its parts do not belong together.
        MissingExtraError: the dataset needs a package that is not installed.
    """
    if name.startswith(PREFIX):
        dataset = read_ir_dataset(name.removeprefix(PREFIX), max_queries)
    elif Path(name).is_file():
        questions = read_questions(Path(name))
        store = build_store(settings)
        try:
            return resolve(Path(name), questions, store, max_queries), store
        except BaseException:
            store.close()
            raise
    elif Path(name).is_dir():
        dataset = read_dataset(Path(name), max_queries)
    else:
        raise SettingsError(
            f"no such dataset: {name}. It is a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv, a file of "
            f"questions, or {PREFIX}NAME for one of ir_datasets"
        )
    return dataset, ingested(dataset, settings, embedder, say)


def ingested(dataset: Dataset, settings: Settings, embedder: Embedder, say: Say) -> Store:
    """The embedded collection of a dataset's documents, brought up to date; the caller closes it.

    Raises:
        SettingsError: too many relevant documents are not among the documents.
    """
    known = {document.id for document in dataset.documents()}
    note = check_documents(dataset, known)
    if note:
        say(note)
    # Another model or chunking gets a collection of its own, so that switching back costs nothing.
    made_with = (dataset.origin, embedder.name, settings.chunk_tokens, settings.chunk_overlap, bm25.DESCRIPTION)
    key = hashlib.blake2b(repr(made_with).encode(), digest_size=6).hexdigest()
    store = EdgeStore(settings.data_dir / "eval" / f"{dataset.name}-{key}")
    try:
        base = Pipeline(
            embedder=embedder, store=store, chunk_tokens=settings.chunk_tokens, chunk_overlap=settings.chunk_overlap
        )
        report = base.ingest(dataset.documents(), progress=_progress(say))
        for failure in report.failures:
            say(f"{failure.source}: {failure.error}")
        store.delete_documents([old.document_id for old in store.versions() if old.document_id not in known])
    except BaseException:
        store.close()
        raise
    return store


def _progress(say: Say) -> Callable[[Progress], None]:
    last = time.monotonic()

    def show(step: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if step.message or now - last > 5:
            last = now
            say(step.message or f"{step.documents} documents, {step.chunks} chunks written")

    return show
