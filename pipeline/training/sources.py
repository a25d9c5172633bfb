"""What to train on: labelled queries over a collection."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from tokenizers import Tokenizer

from pipeline.build import build_embedder, build_store
from pipeline.closing import close
from pipeline.core import Pipeline
from pipeline.errors import SettingsError
from pipeline.evaluation.collection import Say, ingested
from pipeline.evaluation.dataset import Dataset, json_lines, read_dataset
from pipeline.evaluation.questions import read_questions, resolve
from pipeline.interfaces import Embedder, Store
from pipeline.settings import Settings
from pipeline.training.feedback import FeedbackSource, read_feedback
from pipeline.types import Candidate, Chunk


class Source(Protocol):
    """One ``--data``."""

    name: str
    queries: Mapping[str, str]
    """Query id -> text."""
    qrels: Mapping[str, Mapping[str, int]]
    """Query id -> document id -> grade; over 0 is relevant."""

    def candidates(self, query_id: str) -> list[Candidate]:
        """What the first stage gives the reranker, best first."""
        ...

    def negatives(self, query_id: str, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those of the candidates that may be taken for irrelevant."""
        ...

    def chunks(self, document_id: str) -> list[Chunk]:
        """The document's chunks, in order; none if it is not there."""
        ...

    def sample(self, size: int, seed: int) -> list[Chunk]:
        """Chunks drawn at random; equal seeds give equal ones."""
        ...


class CollectionSource:
    """A dataset over a store: candidates come from the same first stage that answers queries."""

    def __init__(self, dataset: Dataset, store: Store, embedder: Embedder, settings: Settings) -> None:
        self.name = dataset.name
        self.queries: Mapping[str, str] = dataset.queries
        self.qrels: Mapping[str, Mapping[str, int]] = dataset.qrels
        self._store = store
        self._pipeline = Pipeline(
            embedder=embedder,
            store=store,
            search=settings.search,
            hybrid_fusion=settings.hybrid_fusion,
            top_n=settings.top_n,
            top_k=settings.top_n,
            chunk_tokens=settings.chunk_tokens,
            chunk_overlap=settings.chunk_overlap,
        )

    def candidates(self, query_id: str) -> list[Candidate]:
        """``RAG_TOP_N`` of them."""
        hits = self._pipeline.query(self.queries[query_id]).hits
        return [Candidate(hit.chunk, hit.first_stage.score, hit.first_stage.rank) for hit in hits]

    def negatives(self, query_id: str, candidates: Sequence[Candidate]) -> list[Candidate]:
        """All that nobody judged relevant."""
        grades = self.qrels[query_id]
        return [candidate for candidate in candidates if grades.get(candidate.chunk.document_id, 0) <= 0]

    def chunks(self, document_id: str) -> list[Chunk]:
        """As stored."""
        return sorted(self._store.chunks([document_id]), key=lambda chunk: chunk.index)

    def sample(self, size: int, seed: int) -> list[Chunk]:
        """Those with the smallest hashes: the store gives them in no particular order."""
        return heapq.nsmallest(size, self._store.chunks(), key=lambda chunk: drawn(seed, chunk.id))


class Sources:
    """All ``--data`` together, with what they have open; close it, or use it in a ``with`` block."""

    def __init__(self, settings: Settings, say: Say) -> None:
        self._settings = settings
        self._say = say
        self._open = ExitStack()
        self._own: Store | None = None
        self._embedder = build_embedder(settings)
        self._open.callback(close, self._embedder)

    def open(self, path: Path) -> Source:
        """A folder in BEIR's layout, a ``questions.jsonl``, or feedback (``{"query", "chosen", "shown"}`` a line).

        Of a folder the judgements in ``qrels/train.tsv`` are taken, and ``qrels/test.tsv`` where there is no other.

        Raises:
            SettingsError: it is none of these, or its parts do not belong together.
        """
        if path.is_dir():
            split = "train" if (path / "qrels" / "train.tsv").is_file() else "test"
            if split == "test":
                self._say(f"{path}: no qrels/train.tsv, so it learns from qrels/test.tsv, which then measures nothing")
            dataset = read_dataset(path, split=split)
            store = ingested(dataset, self._settings, self._embedder, self._say)
            self._open.callback(store.close)
            return CollectionSource(dataset, store, self._embedder, self._settings)
        if not path.is_file():
            raise SettingsError(
                f"--data {path}: there is no such folder or file. It is a folder with corpus.jsonl, queries.jsonl and "
                "qrels/train.tsv, a questions.jsonl, or feedback"
            )
        first = next((line for _, line in json_lines(path)), {})
        if "question" in first:
            dataset = resolve(path, read_questions(path), self._collection(), say=self._say)
            return CollectionSource(dataset, self._collection(), self._embedder, self._settings)
        if "query" in first and "chosen" in first:
            return FeedbackSource(path, read_feedback(path), self._collection(), self._say)
        raise SettingsError(
            f'{path}: its first line is neither {{"question", "relevant"}} nor {{"query", "chosen", "shown"}}'
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """The embedder's, for rerankers whose own is out of reach."""
        return self._embedder.tokenizer

    def _collection(self) -> Store:
        """The collection of the settings, opened once: it is locked by who has it."""
        if self._own is None:
            self._own = build_store(self._settings)
            self._open.callback(self._own.close)
        return self._own

    def close(self) -> None:
        """Releases stores and embedder."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def drawn(seed: int, what: str) -> bytes:
    """A hash to draw by: the smallest are a random sample that is the same in every order of reading."""
    return hashlib.blake2b(f"{seed}\0{what}".encode("utf-8", "backslashreplace"), digest_size=8).digest()
