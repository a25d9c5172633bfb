"""What both stores read by scrolling through the points: the ledger and the chunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.stores import common, filters, payload
from pipeline.types import Chunk, DocumentVersion, Fingerprint, LedgerEntry, StoreCount
from pipeline.where import Where

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ScrollingStore(ABC):
    """The part of a :class:`~pipeline.interfaces.Store` that is the same whatever the engine."""

    _requests: ClassVar[Any]
    """The module that makes the engine's filters: ``documents``, ``related`` and ``condition``."""

    @abstractmethod
    def fingerprint(self) -> Fingerprint | None:
        """What the collection was made with; None if there is none."""

    @abstractmethod
    def delete_chunks(self, point_ids: Iterable[str]) -> int:
        """Removes the chunks that are stored under these ids; returns how many ids there were."""

    @abstractmethod
    def _scroll(self, condition: Any, fields: list[str], *, vectors: bool = False) -> Iterator[Any]:
        """The records that pass, all without a condition, with these payload fields; none if there is no collection."""

    @abstractmethod
    def _index_filtered(self, asked: Iterable[Iterable[filters.Clause]]) -> None:
        """Makes the payload indexes that are due for a filter."""

    @abstractmethod
    def _chunks_of_each(self, field: str) -> tuple[int, dict[Any, int]]:
        """How many chunks there are, and how many have each value of a field."""

    def delete_documents(self, document_ids: Sequence[str]) -> int:
        """Removes all chunks of these documents; returns how many chunks there were."""
        wanted = common.ledger_batches(document_ids)
        return self.delete_chunks(point_id for batch in wanted for point_id, _ in self._points(batch, ["document_id"]))

    def delete_versions(self, stale: Mapping[str, Set[str]]) -> int:
        """Removes the chunks of these versions, content hashes by document; returns how many."""
        fields = ["document_id", "content_hash"]
        stored = (point for batch in common.ledger_batches(list(stale)) for point in self._points(batch, fields))
        return self.delete_chunks(common.stale_ids(stored, stale))

    def versions(self, document_ids: Sequence[str] | None = None) -> Iterator[DocumentVersion]:
        """Versions of these documents, or of all."""
        for batch in common.ledger_batches(document_ids):
            yield from payload.count_versions(stored for _, stored in self._points(batch, payload.LEDGER_FIELDS))

    def related(self, names: Sequence[str], content_hashes: Sequence[str]) -> Iterator[DocumentVersion]:
        """Versions that have one of these names as id or source, or one of these contents."""
        records = self._scroll(self._requests.related(names, content_hashes), payload.LEDGER_FIELDS)
        yield from payload.count_versions(record.payload or {} for record in records)

    def passing(self, where: Where) -> Iterator[DocumentVersion]:
        """Versions of which a chunk passes the filter; ``present`` counts those that do."""
        asked = filters.parse(where)
        if self.fingerprint() is None:
            return
        self._index_filtered(asked)
        records = self._scroll(self._requests.condition(asked), payload.LEDGER_FIELDS)
        yield from payload.count_versions(record.payload or {} for record in records)

    def chunks(self, document_ids: Sequence[str] | None = None) -> Iterator[Chunk]:
        """The stored chunks of these documents, or of all."""
        for batch in common.ledger_batches(document_ids):
            yield from common.to_chunks(stored for _, stored in self._points(batch, payload.CHUNK_FIELDS))

    def chunks_with_vectors(
        self, document_ids: Sequence[str] | None = None
    ) -> Iterator[tuple[Chunk, NDArray[np.float32]]]:
        """The stored chunks of these documents, or of all, each with its dense vector."""
        for batch in common.ledger_batches(document_ids):
            records = self._records(batch, payload.CHUNK_FIELDS, vectors=True)
            yield from common.to_chunks_with_vectors((record.payload or {}, record.vector) for record in records)

    def ledger(self) -> Iterator[LedgerEntry]:
        """An entry for each stored chunk."""
        for point_id, stored in self._points(None, payload.LEDGER_FIELDS):
            yield payload.to_entry(point_id, stored)

    def count(self) -> StoreCount:
        """Documents and chunks in the collection."""
        if self.fingerprint() is None:
            return StoreCount(0, 0)
        chunks, counts = self._chunks_of_each("document_id")
        return StoreCount(len(counts), chunks)

    def digest(self) -> str:
        """Of the documents' ids and content hashes, and the number of chunks of each."""
        if self.fingerprint() is None:
            return ""
        return common.digest(pair for field in common.DIGESTED for pair in self._chunks_of_each(field)[1].items())

    def _points(self, document_ids: Sequence[str] | None, fields: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Ids and payload fields of the chunks of these documents, or of all."""
        for record in self._records(document_ids, fields):
            yield str(record.id), record.payload or {}

    def _records(
        self, document_ids: Sequence[str] | None, fields: list[str], *, vectors: bool = False
    ) -> Iterator[Any]:
        condition = None if document_ids is None else self._requests.documents(document_ids)
        yield from self._scroll(condition, fields, vectors=vectors)
