"""The store on a Qdrant server, cluster or cloud (1.16 or later), over its REST interface.

The fingerprint is in the collection's own metadata under ``two_stage_rag``, so it is made in one step with the
collection and goes with it into snapshots.

An instance made with ``QdrantClient(":memory:")`` works too and is exact, but brute force in Python: for tests.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from qdrant_client import QdrantClient, models

from pipeline.errors import SettingsError, StoreError
from pipeline.stores import bm25, common, filters, payload, server_requests
from pipeline.stores.server_errors import DeniedError, MissingCollectionError, PassingError, explained
from pipeline.types import (
    Candidate,
    Chunk,
    DocumentVersion,
    Fingerprint,
    HybridFusion,
    LedgerEntry,
    SearchMode,
    StoreCount,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")

METADATA_KEY = "two_stage_rag"
# A chunk is about 10 kB of JSON at 384 dimensions; the server takes 32 MB in a request.
_WRITE_BATCH = 128
_READ_BATCH = 2_000

_INDEX_TYPES = {
    "keyword": models.PayloadSchemaType.KEYWORD,
    "float": models.PayloadSchemaType.FLOAT,
    "bool": models.PayloadSchemaType.BOOL,
    "datetime": models.PayloadSchemaType.DATETIME,
}


def connect(url: str, *, api_key: str | None = None, timeout: float = 30.0) -> QdrantClient:
    """A client for a server; no request is made yet. ``timeout``: seconds that one request may take, rounded up.

    Raises:
        SettingsError: the address is none, or holds a password.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if "@" in parts.netloc:
        raise SettingsError("RAG_QDRANT_URL holds a user name or password: put the key into RAG_QDRANT_API_KEY")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"RAG_QDRANT_URL: {url!r} is no address such as http://localhost:6333")
    # As a header: given as ``api_key`` to a plain http address the client warns at every start, compose files too.
    headers = {"api-key": api_key} if api_key else None
    return QdrantClient(
        url=parts.geturl(), headers=headers, timeout=max(1, math.ceil(timeout)), check_compatibility=False
    )


class ServerStore:
    """A collection on a server. Making the object makes no request; :meth:`close` closes the client.

    ``write_pauses``: seconds before a write is tried again after a fault that may pass. An ingest of hours should
    survive a hiccup of the network; a query is never repeated, as the one who asked can ask again.
    """

    def __init__(self, client: QdrantClient, collection: str, *, write_pauses: Sequence[float] = (0.5, 2.0)) -> None:
        self.collection = collection
        self.bm25 = bm25.DESCRIPTION
        self._client = client
        self._write_pauses = write_pauses
        self._local = client.init_options.get("location") == ":memory:"
        self._address = ":memory:" if self._local else _without_secrets(str(client.init_options.get("url")))
        self.name = f"collection {collection} at {self._address}"
        self._known: Fingerprint | None = None
        self._indexed: set[str] = set()
        # The client's local mode, other than its connections, is not safe to share between threads.
        self._turn: AbstractContextManager[Any] = threading.Lock() if self._local else nullcontext()
        self._closed = False

    # -------------------------------------------------------------- collection

    def fingerprint(self) -> Fingerprint | None:
        """What the collection was made with; None if there is none.

        Raises:
            StoreError: there is a collection of this name, but it is not one of ours.
        """
        if self._known is None:
            try:
                info = self._call("look up", lambda: self._client.get_collection(self.collection))
            except MissingCollectionError:
                return None
            stored = (info.config.metadata or {}).get(METADATA_KEY)
            if not isinstance(stored, Mapping):
                raise StoreError(
                    f"{self.name} exists but was not made by this program, or by a Qdrant before 1.16, which keeps no "
                    "metadata; choose another name with RAG_COLLECTION"
                )
            self._known = Fingerprint.from_dict(stored)
            self._indexed.update(path.replace('"', "") for path in info.payload_schema)
        return self._known

    def ensure_ready(self, fingerprint: Fingerprint) -> None:
        """Makes the collection and its payload indexes, as far as they are missing."""
        if self.fingerprint() is None:
            dense = models.VectorParams(size=fingerprint.dimension, distance=models.Distance.COSINE)
            sparse = models.SparseVectorParams(modifier=models.Modifier.IDF)
            try:
                self._call(
                    "make",
                    lambda: self._client.create_collection(
                        self.collection,
                        vectors_config={common.DENSE: dense},
                        sparse_vectors_config={common.SPARSE: sparse},
                        hnsw_config=models.HnswConfigDiff(m=common.HNSW_M, ef_construct=common.HNSW_EF_CONSTRUCT),
                        metadata={METADATA_KEY: fingerprint.to_dict()},
                    ),
                )
            except StoreError:
                if self.fingerprint() is None:  # else another writer was first
                    raise
        for field in payload.INDEXED_FIELDS:
            self._index(field, "keyword")

    def close(self) -> None:
        """Closes the connections. Closing twice is fine."""
        if not self._closed:
            self._closed = True
            self._client.close()

    # ------------------------------------------------------------------ writing

    def upsert(self, chunks: Sequence[Chunk], vectors: NDArray[np.float32]) -> None:
        """Writes chunks, a hundred or so a request; the server has applied them on return."""
        fingerprint = self.fingerprint()
        if fingerprint is None:
            raise StoreError(f"{self.name} does not exist yet: ensure_ready() comes first")
        common.check_vectors(chunks, vectors, fingerprint.dimension)
        for start in range(0, len(chunks), _WRITE_BATCH):
            batch = slice(start, start + _WRITE_BATCH)
            points = [
                server_requests.point(chunk, vector)
                for chunk, vector in zip(chunks[batch], vectors[batch], strict=True)
            ]
            self._write("write to", partial(self._client.upsert, self.collection, points, wait=True))

    def delete_documents(self, document_ids: Sequence[str]) -> int:
        """Removes all chunks of these documents; returns how many chunks there were."""
        wanted = common.ledger_batches(document_ids)
        return self.delete_chunks(point_id for batch in wanted for point_id, _ in self._points(batch, ["document_id"]))

    def delete_versions_except(self, keep: Mapping[str, str]) -> int:
        """Removes the chunks of other versions of these documents than the given ones; returns how many."""
        fields = ["document_id", "content_hash"]
        stored = (point for batch in common.ledger_batches(list(keep)) for point in self._points(batch, fields))
        return self.delete_chunks(common.stale_ids(stored, keep))

    def delete_chunks(self, point_ids: Iterable[str]) -> int:
        """Removes the chunks that are stored under these ids; returns how many ids there were."""
        doomed = list(point_ids)
        for batch in common.batches(doomed, common.LEDGER_BATCH):
            selector = models.PointIdsList(points=list(batch))
            self._write("delete from", partial(self._client.delete, self.collection, selector, wait=True))
        return len(doomed)

    def optimize(self, progress: Callable[[str], None] | None = None) -> None:
        """Nothing: a server builds its index by itself, in the background."""

    # ------------------------------------------------------------------ reading

    def versions(self, document_ids: Sequence[str] | None = None) -> Iterator[DocumentVersion]:
        """Versions of these documents, or of all."""
        for batch in common.ledger_batches(document_ids):
            yield from payload.count_versions(stored for _, stored in self._points(batch, payload.LEDGER_FIELDS))

    def chunks(self, document_ids: Sequence[str] | None = None) -> Iterator[Chunk]:
        """The stored chunks of these documents, or of all."""
        for batch in common.ledger_batches(document_ids):
            for _, stored in self._points(batch, payload.CHUNK_FIELDS):
                yield payload.to_chunk(stored)

    def ledger(self) -> Iterator[LedgerEntry]:
        """An entry for each stored chunk."""
        for point_id, stored in self._points(None, payload.LEDGER_FIELDS):
            yield payload.to_entry(point_id, stored)

    def count(self) -> StoreCount:
        """Documents and chunks in the collection."""
        try:
            chunks = self._call("count", lambda: self._client.count(self.collection, exact=True)).count
            facet = self._call(
                "count", lambda: self._client.facet(self.collection, "document_id", limit=max(1, chunks), exact=True)
            )
        except MissingCollectionError:
            return StoreCount(0, 0)
        return StoreCount(sum(hit.count > 0 for hit in facet.hits), chunks)

    def search(
        self,
        text: str,
        vector: NDArray[np.float32] | None,
        *,
        limit: int,
        mode: SearchMode = "hybrid",
        fusion: HybridFusion = "dbsf",
        where: Mapping[str, Any] | None = None,
        exact: bool = False,
    ) -> list[Candidate]:
        """The best ``limit`` chunks; see :meth:`pipeline.interfaces.Store.search`."""
        clauses = filters.parse(where)
        dense = common.query_vector(vector, mode)
        request = server_requests.query(
            text,
            dense,
            limit=limit,
            mode=mode,
            fusion=fusion,
            condition=server_requests.condition(clauses),
            exact=exact,
            local=self._local,
        )
        if request is None:
            return []
        try:
            self._index_filtered(clauses)
            found = self._call("search", partial(self._client.query_points, self.collection, **request))
        except MissingCollectionError:
            return []
        return common.to_candidates((point.id, point.score, point.payload or {}) for point in found.points)

    # ------------------------------------------------------------------ requests

    def _call(self, doing: str, request: Callable[[], T]) -> T:
        if self._closed:
            raise StoreError(f"{self.name} was closed")
        with self._turn, explained(f"{doing} collection {self.collection}", self._address):
            return request()

    def _write(self, doing: str, request: Callable[[], T]) -> T:
        """A request that may be repeated without harm, and is, where the fault may pass."""
        for pause_s in self._write_pauses:
            try:
                return self._call(doing, request)
            except PassingError:
                time.sleep(pause_s)
        return self._call(doing, request)

    def _index_filtered(self, clauses: Sequence[filters.Clause]) -> None:
        missing = [clause for clause in clauses if clause.path.replace('"', "") not in self._indexed]
        if not missing or self.fingerprint() is None:
            return
        for clause in missing:
            try:
                self._index(clause.path, clause.index)
            except (DeniedError, PassingError):
                # A key that may only read, or an index that takes longer to build than a request may: the search
                # is right without, only slower, and says so itself where the server insists on an index.
                self._indexed.add(clause.path.replace('"', ""))

    def _index(self, path: str, index: filters.IndexType) -> None:
        """Makes sure that a field has an index. There is one a field: one of another type is left as it is."""
        name = path.replace('"', "")
        if name in self._indexed:
            return
        if not self._local:  # local mode has no indexes, and warns
            self._call(
                "make an index in",
                lambda: self._client.create_payload_index(self.collection, path, _INDEX_TYPES[index], wait=True),
            )
        self._indexed.add(name)

    def _points(self, document_ids: Sequence[str] | None, fields: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Ids and payload fields of the chunks of these documents, or of all."""
        condition = None
        if document_ids is not None:
            names = [payload.clean(document_id) for document_id in document_ids]
            match = models.FieldCondition(key="document_id", match=models.MatchAny(any=names))
            condition = models.Filter(must=[match])
        offset = None
        while True:
            try:
                records, offset = self._call(
                    "read",
                    partial(
                        self._client.scroll,
                        self.collection,
                        scroll_filter=condition,
                        limit=_READ_BATCH,
                        offset=offset,
                        with_payload=fields,
                        with_vectors=False,
                    ),
                )
            except MissingCollectionError:
                return
            for record in records:
                yield str(record.id), record.payload or {}
            if offset is None:
                return


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
