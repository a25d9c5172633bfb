"""The embedded store: Qdrant Edge in this process, files in one directory, no server.

The directory holds ``fingerprint.json`` (written when everything else is in place, and before the first chunk),
``shard/`` (the engine's files), ``pending.json`` (how much is outside the index), and ``lock`` with ``holder.json``
(see :mod:`pipeline.stores.locking`).

Several stores on one directory in one process share one engine, from any number of threads; a second process gets a
StoreLockedError. While the index is built (:meth:`EdgeStore.optimize`) searches of other threads wait for it.

A reindex makes more of such directories beside it: see :mod:`pipeline.stores.edge_generations`. A store stays with the
one that was in use when it first found one.
"""

from __future__ import annotations

import copy
import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import qdrant_edge as edge

from pipeline.errors import StoreError
from pipeline.files import write_atomically
from pipeline.stores import bm25, common, edge_requests, filters, hybrid, payload, shards
from pipeline.stores.edge_generations import EdgeGenerations, in_use
from pipeline.stores.scrolling import ScrollingStore
from pipeline.stores.storage import INDEXING_KIB, Storage
from pipeline.types import (
    Candidate,
    Chunk,
    Fingerprint,
    HybridFusion,
    SearchMode,
)
from pipeline.where import Where

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

_WRITE_BATCH = 1_000
_READ_BATCH = 2_000
_READ_VECTORS = 500

_INDEX_TYPES = {
    "keyword": edge.PayloadSchemaType.Keyword,
    "float": edge.PayloadSchemaType.Float,
    "bool": edge.PayloadSchemaType.Bool,
    "datetime": edge.PayloadSchemaType.Datetime,
}


class EdgeStore(ScrollingStore):
    """A collection in a directory. Making the object touches nothing; the first real use opens and locks it.

    ``optimize_after``: chunks that may wait outside the index before a write builds it. Past twice that number they
    may also be half as many as are in it, so that a large ingest does not build the same index again and again.
    """

    _requests: ClassVar[Any] = edge_requests

    def __init__(self, path: Path, *, optimize_after: int = 20_000, storage: Storage | None = None) -> None:
        self.path = Path(path).absolute()
        self.name = f"the embedded store in {path}"
        self.bm25 = bm25.DESCRIPTION
        self.whole_chunks = 1_000
        self._optimize_after = optimize_after
        self._storage = storage or Storage()
        self._guard = threading.Lock()
        self._shard: shards.OpenShard | None = None
        self._closed = False
        self._known: Fingerprint | None = None
        self._at: Path | None = None
        """Directory of the generation that this store stays with."""
        self._chosen = False
        """Whether it was asked for by name, rather than being the one in use."""

    # -------------------------------------------------------------- collection

    @property
    def directory(self) -> Path:
        """Where the chunks are: ``path``, or after a reindex a directory beside it."""
        return self._at or in_use(self.path)

    def generations(self) -> EdgeGenerations:
        """The collections that reindexing leaves side by side."""
        return EdgeGenerations(self.path, self._generation, self.follow)

    def _generation(self, name: str) -> EdgeStore:
        other = copy.copy(self)
        other._guard, other._shard, other._closed, other._known = threading.Lock(), None, False, None
        other._at, other._chosen = self.path.parent / name, True
        return other

    def follow(self) -> None:
        """Leaves the generation that this store stayed with for the one that is in use now."""
        with self._guard:
            shard, self._shard = self._shard, None
            if not self._chosen:
                self._at = self._known = None
        if shard is not None:
            shards.release(shard)

    def fingerprint(self) -> Fingerprint | None:
        """What the collection was made with; None if there is none. Takes no lock."""
        if self._known is None:
            directory = self.directory
            file = directory / "fingerprint.json"
            try:
                self._known = Fingerprint.from_dict(json.loads(file.read_text(encoding="utf-8")))
            except (FileNotFoundError, NotADirectoryError):
                return None
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise StoreError(
                    f"cannot read {file} ({error}): check its permissions; if it is damaged, delete {directory} and "
                    "ingest again"
                ) from error
            self._at = directory
        return self._known

    def ensure_ready(self, fingerprint: Fingerprint) -> None:
        """Makes the directory, the engine's files and the payload indexes, and then the fingerprint."""
        if self.fingerprint() is not None:
            return
        config = edge.EdgeConfig(
            **edge_requests.vectors(fingerprint.dimension, self._storage),
            hnsw_config=edge.HnswIndexConfig(common.HNSW_M, common.HNSW_EF_CONSTRUCT, INDEXING_KIB),
            optimizers=edge.EdgeOptimizersConfig(indexing_threshold=INDEXING_KIB),
        )
        with self._engine("prepare", config) as (shard, engine):
            directory = shard.directory
            if self.fingerprint() is not None:
                return  # another writer was first
            for field in payload.INDEXED_FIELDS:
                engine.update(edge.UpdateOperation.create_field_index(field, _INDEX_TYPES["keyword"]))
            engine.flush()
            try:
                write_atomically(directory / "fingerprint.json", json.dumps(fingerprint.to_dict(), indent=2))
            except OSError as error:
                raise StoreError(f"cannot write in {directory} ({error.strerror})") from error

    def close(self) -> None:
        """Frees the directory, unless another store of this process uses it. Closing twice is fine."""
        with self._guard:
            shard, self._shard, self._closed = self._shard, None, True
        if shard is not None:
            shards.release(shard)

    # ------------------------------------------------------------------ writing

    def upsert(self, chunks: Sequence[Chunk], vectors: NDArray[np.float32]) -> None:
        """Writes chunks; on return they survive a ``kill -9``."""
        fingerprint = self.fingerprint()
        if fingerprint is None:
            raise StoreError(f"{self.name} does not exist yet: ensure_ready() comes first")
        common.check_vectors(chunks, vectors, fingerprint.dimension)
        # One operation is one entry of the write-ahead log: after a crash it is there or not.
        for batch in common.document_batches(chunks, _WRITE_BATCH, self.whole_chunks):
            points = [
                edge_requests.point(chunk, vector) for chunk, vector in zip(chunks[batch], vectors[batch], strict=True)
            ]
            with self._writing("write to") as (shard, engine):
                shard.check_space(4 * vectors[batch].nbytes)
                engine.update(edge.UpdateOperation.upsert_points(points))
                shard.wrote(engine, written=len(points))
                unindexed = shard.unindexed
                indexed = engine.info().points_count - unindexed
            if unindexed * _kib(fingerprint) >= INDEXING_KIB and unindexed >= max(self._optimize_after, indexed // 2):
                self.optimize(log.info)

    def delete_chunks(self, point_ids: Iterable[str]) -> int:
        """Removes the chunks that are stored under these ids; returns how many ids there were."""
        doomed = list(point_ids)
        for batch in common.batches(doomed, common.LEDGER_BATCH):
            with self._writing("delete from") as (shard, engine):
                engine.update(edge.UpdateOperation.delete_points(list(batch)))
                shard.wrote(engine, deleted=len(batch))
        return len(doomed)

    def optimize(self, progress: Callable[[str], None] | None = None) -> None:
        """Builds the HNSW index where enough chunks are outside it, and clears away what was deleted.

        A collection that is kept in another way than it should be is stored anew.
        """
        fingerprint = self.fingerprint()
        if fingerprint is None:
            return
        with self._engine("configure") as (shard, _):
            stored = edge_requests.storage(shard.config())
            if changes := self._storage.changes(stored):
                if progress is not None:
                    progress(f"storing the vectors anew ({changes})")
                wanted = edge_requests.vectors(fingerprint.dimension, self._storage.over(stored))
                shard.reconfigure(edge.EdgeConfig(**wanted))
        with self._engine("optimize") as (shard, engine):
            points, kib = engine.info().points_count, _kib(fingerprint)
            if points * kib < INDEXING_KIB:
                engine.optimize()  # no index is due: this merges small segments, in milliseconds
                shard.deleted = 0
            elif shard.unindexed >= shard.again_from and (
                shard.unindexed * kib >= INDEXING_KIB or shard.deleted > points // 5
            ):
                if progress is not None:
                    progress(f"building the index over {points:,} chunks")
                shard.optimize()

    # ------------------------------------------------------------------ reading

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
        """The best ``limit`` chunks; see :meth:`pipeline.interfaces.Store.search`."""
        asked = filters.parse(where)
        nearest = edge_requests.nearest(common.query_vectors(text, vector, mode))
        if not nearest or self.fingerprint() is None:
            return []
        condition = edge_requests.condition(asked)
        deep = common.depth(limit) if len(nearest) > 1 else limit
        params = edge_requests.params(
            deep, filtered=condition is not None, exact=exact, oversampling=self._storage.oversampling
        )

        def ask(questions: Sequence[hybrid.Question[Any]]) -> list[dict[Any, float]]:
            requests = [
                edge_requests.best(nearest[name], deep, condition, params, payload=False)
                if ids is None
                else edge_requests.scores(nearest[name], ids)
                for name, ids in questions
            ]
            found = engine.query_batch(edge.QueryBatchRequest(requests))
            return [{point.id: point.score for point in points} for points in found]

        def read(ids: Sequence[Any]) -> list[edge.Record]:
            return engine.retrieve(list(ids), True, False)

        self._index_filtered(asked)
        with self._engine("search") as (_, engine):
            if len(nearest) > 1 and fusion == "convex":
                return common.best_chunks(hybrid.search(ask), limit, read)
            if len(nearest) > 1:
                request = edge_requests.fused(nearest.values(), fusion, limit, deep, condition, params)
            else:
                (one,) = nearest.values()
                request = edge_requests.best(one, limit, condition, params, payload=True)
            found = engine.query(request)
        return common.to_candidates((point.id, point.score, point.payload or {}) for point in found)

    def _index_filtered(self, asked: Iterable[Iterable[filters.Clause]]) -> None:
        """Makes the indexes that are due for a filter; one of another type is replaced in the same step."""
        for clause in chain.from_iterable(asked):
            with self._engine("search") as (_, engine):
                # The engine names a path with quotes only where it must have them. Asking it takes microseconds.
                known = {filters.unquoted(path): info.data_type for path, info in engine.info().payload_schema.items()}
                existing = known.get(filters.unquoted(clause.path))
                due = clause.index_due(None if existing is None else _type_name(existing))
                if due is not None:
                    engine.update(edge.UpdateOperation.create_field_index(clause.path, _INDEX_TYPES[due]))

    # ------------------------------------------------------------------ engine

    @contextmanager
    def _engine(
        self, doing: str, config: edge.EdgeConfig | None = None
    ) -> Iterator[tuple[shards.OpenShard, edge.EdgeShard]]:
        shard = self._open(config)
        with shard.use(doing) as engine:
            yield shard, engine

    @contextmanager
    def _writing(self, doing: str) -> Iterator[tuple[shards.OpenShard, edge.EdgeShard]]:
        """The engine for a change, which must not go into a collection that is in use no longer."""
        shard = self._open()
        with shard.writing:
            if not self._chosen and self._at is not None and in_use(self.path) != self._at:
                raise StoreError(
                    f"{self.name} was switched to another collection (rag reindex or rag rollback) since this program "
                    "opened it; this was not written. Start again with the settings that rag status shows"
                )
            with shard.use(doing) as engine:
                yield shard, engine

    def _open(self, config: edge.EdgeConfig | None = None) -> shards.OpenShard:
        with self._guard:
            if self._closed:
                raise StoreError(f"{self.name} was closed")
            if self._shard is None:
                self._shard = shards.acquire(self.directory, config)
            return self._shard

    def _chunks_of_each(self, field: str) -> tuple[int, dict[Any, int]]:
        with self._engine("count") as (_, engine):
            chunks = engine.count(edge.CountRequest(exact=True))
            facet = edge.FacetRequest(field, limit=max(1, chunks), exact=True)
            # Values whose last chunk was deleted are still listed, with a count of 0.
            return chunks, {hit.value: hit.count for hit in engine.facet(facet).hits if hit.count}

    def _scroll(
        self, condition: edge.Filter | None, fields: list[str], *, vectors: bool = False
    ) -> Iterator[edge.Record]:
        if self.fingerprint() is None:
            return
        offset = None
        limit, wanted = (_READ_VECTORS, [common.DENSE]) if vectors else (_READ_BATCH, False)
        shard = shards.acquire(self._open().directory)  # all pages from one, if there is a switch meanwhile
        try:
            while True:
                request = edge.ScrollRequest(
                    offset=offset, limit=limit, filter=condition, with_payload=fields, with_vector=wanted
                )
                with shard.use("read") as engine:
                    records, offset = engine.scroll(request)
                yield from records
                if offset is None:
                    return
        finally:
            shards.release(shard)


def _type_name(index: edge.PayloadSchemaType) -> str:
    """As in the server's answers, such as ``datetime``."""
    return str(index).rpartition(".")[2].lower()


def _kib(fingerprint: Fingerprint) -> float:
    """Size of one chunk's dense vector."""
    return 4 * fingerprint.dimension / 1024
