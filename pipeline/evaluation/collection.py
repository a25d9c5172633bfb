"""The collection that a dataset is evaluated on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
from pipeline.stores.storage import Storage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

Say = Callable[[str], None]
# Tokens of a chunk that holds any document.
_WHOLE = 10_000_000


def open_dataset(
    name: str,
    settings: Settings,
    embedder: Embedder,
    *,
    max_queries: int | None,
    whole_documents: bool = False,
    say: Say,
) -> tuple[Dataset, Store]:
    """The dataset called ``name``, and the store with its documents; the caller closes it.

    A folder in BEIR's layout and a name of ``ir_datasets`` (``irds:NAME``) are ingested into an embedded collection of
    their own under the data directory, cut as the settings say; a second evaluation finds it there. With
    ``whole_documents`` each document is one chunk, of which the embedder reads what it has room for and BM25 all: so
    BEIR's published figures were made. A file of questions is asked of the collection of the settings, as it is.

    Raises:
        SettingsError: there is no such dataset, its parts do not belong together, or a collection that is there
            already should be of whole documents.
        MissingExtraError: the dataset needs a package that is not installed.
    """
    if name.startswith(PREFIX):
        dataset = read_ir_dataset(name.removeprefix(PREFIX), max_queries)
    elif Path(name).is_file():
        if whole_documents:
            raise SettingsError(f"{name} asks about the ingested collection, whose documents are cut already")
        questions = read_questions(Path(name))
        store = build_store(settings)
        try:
            return resolve(Path(name), questions, store, max_queries, say), store
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
    return dataset, ingested(dataset, settings, embedder, say, whole_documents=whole_documents)


def ingested(
    dataset: Dataset, settings: Settings, embedder: Embedder, say: Say, *, whole_documents: bool = False
) -> Store:
    """The embedded collection of a dataset's documents, brought up to date; the caller closes it.

    Raises:
        SettingsError: too many relevant documents are not among the documents.
    """
    known = {document.id for document in dataset.documents()}
    note = check_documents(dataset, known)
    if note:
        say(note)
    tokens, overlap = settings.chunk_tokens, settings.chunk_overlap
    if whole_documents:
        embedder, tokens, overlap = _Uncut(embedder), _WHOLE, 0
    # What is empty is as for a new collection, so that a folder holds what its key says.
    storage = Storage(settings.quantization or "none", settings.on_disk or False, settings.oversampling)
    # Another model, chunking or way to keep the vectors gets a collection of its own, so that switching back costs
    # nothing. Oversampling belongs to a search.
    made_with: tuple[object, ...] = (dataset.origin, embedder.name, tokens, overlap, bm25.DESCRIPTION)
    kept = (storage.quantization, storage.on_disk)
    if kept != ("none", False):  # added for others alone: collections made before this was part of the key are found
        made_with += kept
    key = hashlib.blake2b(repr(made_with).encode(), digest_size=6).hexdigest()
    store = EdgeStore(settings.data_dir / "eval" / f"{dataset.name}-{key}", storage=storage)
    try:
        base = Pipeline(embedder=embedder, store=store, chunk_tokens=tokens, chunk_overlap=overlap)
        report = base.ingest(dataset.documents(), progress=_progress(say))
        for failure in report.failures:
            say(f"{failure.source}: {failure.error}")
        store.delete_documents([old.document_id for old in store.versions() if old.document_id not in known])
    except BaseException:
        store.close()
        raise
    return store


class _Uncut:
    """An embedder that is given texts longer than it reads, and cuts them by itself."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self.name = embedder.name
        self.dimension = embedder.dimension
        self.max_tokens = 2 * _WHOLE

    @property
    def tokenizer(self) -> Tokenizer:
        return self._embedder.tokenizer

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._embedder.embed_documents(texts)

    def embed_query(self, text: str) -> NDArray[np.float32]:
        return self._embedder.embed_query(text)


def _progress(say: Say) -> Callable[[Progress], None]:
    last = time.monotonic()

    def show(step: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if step.message or now - last > 5:
            last = now
            say(step.message or f"{step.documents} documents, {step.chunks} chunks written")

    return show
