"""Deterministic stand-ins for unit tests: no model, no network, no engine."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from pipeline.types import (
    Candidate,
    Chunk,
    DocumentVersion,
    Fingerprint,
    HybridFusion,
    LedgerEntry,
    RerankScore,
    ScoreScale,
    SearchMode,
    StoreCount,
)
from pipeline.where import Where, alternatives

_WORD = r"[一-鿿]|[A-Za-z0-9]+|[^\sA-Za-z0-9]"


def words(text: str) -> list[str]:
    """Latin words, and single Chinese characters."""
    return re.findall(_WORD, text.lower())


def word_tokenizer() -> Tokenizer:
    """A tokenizer whose tokens are the words of :func:`words`."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True)
    return tokenizer


class FakeEmbedder:
    """Hashed bag of words: texts that share words have a high cosine."""

    def __init__(self, dimension: int = 64, name: str = "fake-embedder@1") -> None:
        self.name = name
        self.dimension = dimension
        self.max_tokens = 512
        self.tokenizer = word_tokenizer()
        self.embedded: list[str] = []

    def _vector(self, text: str) -> NDArray[np.float32]:
        vector = np.full(self.dimension, 1e-3, dtype=np.float32)
        for word in words(text):
            vector[zlib.crc32(word.encode("utf-8", "replace")) % self.dimension] += 1.0
        return vector / np.float32(np.linalg.norm(vector))

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.embedded.extend(texts)
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        return np.stack([self._vector(text) for text in texts])

    def embed_query(self, text: str) -> NDArray[np.float32]:
        return self._vector(text)


class FakeReranker:
    """Logit = 4 x share of the query's words that the text has, minus 2; or what ``logits`` says of the text."""

    scale: ScoreScale = "logit"

    def __init__(
        self, logits: Mapping[str, float] | None = None, default_alpha: float = 1.0, name: str = "fake"
    ) -> None:
        self.name = name
        self.default_alpha = default_alpha
        self.logits = logits
        self.calls: list[tuple[str, list[str]]] = []

    def score(self, query: str, texts: Sequence[str]) -> list[RerankScore]:
        self.calls.append((query, list(texts)))
        scores = []
        for text in texts:
            if self.logits is not None:
                raw = self.logits[text]
            else:
                wanted = set(words(query))
                raw = 4.0 * len(wanted & set(words(text))) / max(1, len(wanted)) - 2.0
            scores.append(RerankScore(raw, 1.0 / (1.0 + math.exp(-raw))))
        return scores


def passes(chunk: Chunk, where: Where | None) -> bool:
    asked = alternatives(where) or [{}]
    return any(all(chunk.metadata.get(key) == value for key, value in one.items()) for one in asked)


class FakeStore:
    """A store in a dict, with exact cosine search; filters by equality only."""

    name = "fake-store"
    bm25 = "none"
    whole_chunks = 1_000

    def __init__(self) -> None:
        self.points: dict[str, tuple[Chunk, NDArray[np.float32]]] = {}
        self.made_with: Fingerprint | None = None
        self.closed = False

    def fingerprint(self) -> Fingerprint | None:
        return self.made_with

    def ensure_ready(self, fingerprint: Fingerprint) -> None:
        self.made_with = self.made_with or fingerprint

    def upsert(self, chunks: Sequence[Chunk], vectors: NDArray[np.float32]) -> None:
        for chunk, vector in zip(chunks, vectors, strict=True):
            self.points[chunk.id] = (chunk, vector)

    def _remove(self, doomed: Callable[[Chunk], bool]) -> int:
        ids = [id_ for id_, (chunk, _) in self.points.items() if doomed(chunk)]
        for id_ in ids:
            del self.points[id_]
        return len(ids)

    def delete_documents(self, document_ids: Sequence[str]) -> int:
        wanted = set(document_ids)
        return self._remove(lambda chunk: chunk.document_id in wanted)

    def delete_versions(self, stale: Mapping[str, Set[str]]) -> int:
        return self._remove(lambda chunk: chunk.content_hash in stale.get(chunk.document_id, frozenset()))

    def versions(self, document_ids: Sequence[str] | None = None) -> Iterator[DocumentVersion]:
        return self._versions(lambda chunk: document_ids is None or chunk.document_id in document_ids)

    def passing(self, where: Where) -> Iterator[DocumentVersion]:
        return self._versions(lambda chunk: passes(chunk, where))

    def _versions(self, wanted: Callable[[Chunk], bool]) -> Iterator[DocumentVersion]:
        groups: dict[tuple[str, str], list[Chunk]] = {}
        for chunk, _ in list(self.points.values()):  # an ingest writes while it reads
            if wanted(chunk):
                groups.setdefault((chunk.document_id, chunk.content_hash), []).append(chunk)
        for (document_id, content_hash), chunks in groups.items():
            first = chunks[0]
            torn = any(chunk.copies != first.copies for chunk in chunks)
            copies = tuple(copy for copy in first.copies if all(copy in chunk.copies for chunk in chunks))
            yield DocumentVersion(document_id, content_hash, first.source, len(chunks), first.count, copies, torn)

    def related(self, names: Sequence[str], content_hashes: Sequence[str]) -> Iterator[DocumentVersion]:
        for version in self.versions():
            if {version.document_id, *version.sources} & {*names} or version.content_hash in content_hashes:
                yield version

    def delete_chunks(self, point_ids: Iterable[str]) -> int:
        ids = list(point_ids)
        for id_ in ids:
            self.points.pop(id_, None)
        return len(ids)

    def ledger(self) -> Iterator[LedgerEntry]:
        for id_, (chunk, _) in list(self.points.items()):
            yield LedgerEntry(
                id_, chunk.document_id, chunk.content_hash, chunk.index, chunk.count, chunk.source, chunk.copies
            )

    def chunks(self, document_ids: Sequence[str] | None = None) -> Iterator[Chunk]:
        for chunk, _ in list(self.points.values()):
            if document_ids is None or chunk.document_id in document_ids:
                yield chunk

    def chunks_with_vectors(
        self, document_ids: Sequence[str] | None = None
    ) -> Iterator[tuple[Chunk, NDArray[np.float32]]]:
        for chunk in self.chunks(document_ids):
            yield chunk, self.points[chunk.id][1]

    def search(
        self,
        text: str,
        vector: NDArray[np.float32] | None,
        *,
        limit: int,
        mode: SearchMode = "hybrid",
        fusion: HybridFusion = "convex",
        where: Where | None = None,
        exact: bool = False,
    ) -> list[Candidate]:
        assert vector is not None
        scored = [(float(stored @ vector), chunk) for chunk, stored in self.points.values() if passes(chunk, where)]
        scored.sort(key=lambda pair: (-pair[0], pair[1].id))
        return [Candidate(chunk, score, rank) for rank, (score, chunk) in enumerate(scored[:limit], 1)]

    def count(self) -> StoreCount:
        return StoreCount(len({chunk.document_id for chunk, _ in self.points.values()}), len(self.points))

    def digest(self) -> str:
        return repr(sorted((chunk.document_id, chunk.content_hash) for chunk, _ in self.points.values()))

    def optimize(self, progress: Callable[[str], None] | None = None) -> None:
        if progress is not None:
            progress("nothing to do")

    def close(self) -> None:
        self.closed = True
