"""The store on a Qdrant server, cluster or cloud (1.16 or later), over its REST interface.

The fingerprint is in the collection's own metadata under ``two_stage_rag``, so it is made in one step with the
collection and goes with it into snapshots. A reindex makes more collections under one name: see
:mod:`pipeline.stores.server_generations`. A store stays with the one that was in use when it first found one.

An instance made with ``QdrantClient(":memory:")`` works too and is exact, but brute force in Python: for tests.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, cast

from qdrant_client import QdrantClient, models

from pipeline.errors import StoreError, StoreUnavailableError
from pipeline.retrying import RetryPolicy
from pipeline.stores import bm25, common, filters, hybrid, payload, server_requests, server_settings
from pipeline.stores.connection import Connection, patience
from pipeline.stores.scrolling import ScrollingStore
from pipeline.stores.server_errors import DeniedError, MissingCollectionError
from pipeline.stores.server_generations import METADATA_KEY, ServerGenerations, current_alias, own_note, switcher
from pipeline.stores.storage import INDEXING_KIB, Cluster, Storage
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

Ask = Callable[[str, Callable[[], Any]], Any]
"""How a request is made: :meth:`Connection.once` or :meth:`Connection.patiently`."""

# Qdrant advises 64-256 points a request, and two to four requests at once
# (https://qdrant.tech/documentation/manage-data/bulk-upload). A chunk is about 10 kB of JSON at 384 dimensions and
# 90 kB at 4096; the server takes 32 MB in a request.
_WRITE_BATCH = 128
_WRITES_AT_ONCE = 4
_WHOLE_CHUNKS = 256
_READ_BATCH = 2_000
_READ_VECTORS = 500

# Seconds after which a filtered search looks again whether others have changed the payload indexes.
_LOOK_AGAIN_S = 60.0

_INDEX_TYPES = {
    "keyword": models.PayloadSchemaType.KEYWORD,
    "float": models.PayloadSchemaType.FLOAT,
    "bool": models.PayloadSchemaType.BOOL,
    "datetime": models.PayloadSchemaType.DATETIME,
}


class ServerStore(ScrollingStore):
    """A collection on a server. Making the object makes no request; :meth:`close` closes the client.

    Writes, and reads of the ledger, are tried again for ``deadline`` seconds after a fault that may pass: an ingest of
    hours should survive a restart of the server. A search is never repeated, as the one who asked can ask again.
    """

    _requests: ClassVar[Any] = server_requests

    def __init__(
        self,
        client: QdrantClient,
        collection: str,
        *,
        deadline: float = 120.0,
        retry: RetryPolicy | None = None,
        storage: Storage | None = None,
        cluster: Cluster | None = None,
    ) -> None:
        self.collection = collection
        self.bm25 = bm25.DESCRIPTION
        self.whole_chunks = _WHOLE_CHUNKS
        self._client = client
        self._server = Connection(client, collection, retry or patience(deadline))
        self.name = f"collection {collection} at {self._server.address}"
        self._storage = storage or Storage()
        self._cluster = cluster or Cluster()
        self._known: Fingerprint | None = None
        self._indexes: dict[str, str] = {}
        """Types of the payload indexes, by path without quotes; empty for one that this key may not make."""
        self._looked = 0.0
        self._indexing = threading.Lock()
        self._at: str | None = None
        """Name of the generation that this store stays with."""
        self._chosen = False
        """Whether it was asked for by name, rather than being the one in use."""

    # -------------------------------------------------------------- collection

    @property
    def _name(self) -> str:
        """Of the collection on the server: that of the settings, or after a reindex another one."""
        return self._at or self.collection

    def generations(self) -> ServerGenerations:
        """The collections that reindexing leaves side by side."""
        return ServerGenerations(self._client, self._server, self.collection, self._generation, self.follow)

    def _generation(self, name: str) -> ServerStore:
        other = copy.copy(self)
        other._known, other._indexes, other._at, other._chosen = None, {}, name, True
        return other

    def follow(self) -> None:
        """Leaves the generation that this store stayed with for the one that is in use now."""
        if not self._chosen:
            self._known, self._indexes = None, {}  # until the next look-up has found it, names lead to the one before

    def fingerprint(self) -> Fingerprint | None:
        """What the collection was made with; None if there is none.

        Raises:
            StoreError: there is a collection of this name, but it is not one of ours.
        """
        return self._fingerprint(self._server.once)

    def _fingerprint(self, ask: Ask) -> Fingerprint | None:
        if self._known is None:
            info = self._look_up(ask)
            if info is None:
                return None
            stored = (info.config.metadata or {}).get(METADATA_KEY)
            if not isinstance(stored, Mapping):
                raise StoreError(
                    f"{self.name} exists but was not made by this program, or by a Qdrant before 1.16, which keeps no "
                    "metadata; choose another name with RAG_COLLECTION"
                )
            known = Fingerprint.from_dict(stored)
            self._at = str(stored.get("generation", self.collection))
            self._known = known
            kib = (info.points_count or 0) * known.dimension * 4 / 1024
            if server_settings.is_deferred(info.config) and kib > INDEXING_KIB:
                log.warning(
                    "%s has no index yet: an ingest is writing it now, or was cut off. Searches are right but slow; "
                    "the end of an ingest, or rag verify --repair, has it built",
                    self.name,
                )
            self._note_indexes(info)
            return known
        return self._known

    def _look_up(self, ask: Ask) -> models.CollectionInfo | None:
        """What the server says of the collection in use, or of the one that was asked for; None if there is none."""
        if not self._chosen:
            # None there: there was no reindex. Denied: the key is for the plain name alone, or for nothing.
            with suppress(MissingCollectionError, DeniedError):
                info = ask("look up", lambda: self._client.get_collection(current_alias(self.collection)))
                return cast("models.CollectionInfo", info)
        name = self._name if self._chosen else self.collection
        with suppress(MissingCollectionError):
            return cast("models.CollectionInfo", ask("look up", lambda: self._client.get_collection(name)))
        return None

    def _refuse_left(self) -> None:
        """A change must not go into a collection that is in use no longer; while that may be decided it waits."""
        if self._chosen:
            return
        if self._fingerprint(self._server.patiently) is None:
            return
        while True:
            info = self._look_up(self._server.patiently)
            stored = (info.config.metadata or {}).get(METADATA_KEY, {}) if info is not None else {}
            if stored.get("generation", self.collection) != self._at:
                raise StoreError(
                    f"{self.name} was switched to another collection (rag reindex or rag rollback) since this program "
                    "opened it; this was not written. Start again with the settings that rag status shows"
                )
            if switcher(stored) is None:
                return
            self._server.patiently("write to", self._look_for_switcher)

    def _look_for_switcher(self) -> None:
        info = self._client.get_collection(self._name)
        if other := switcher((info.config.metadata or {}).get(METADATA_KEY, {})):
            raise StoreUnavailableError(
                f"{self.name} waits for {other}, which is about to switch to another collection (rag reindex or rag "
                "rollback)"
            )

    def _gone(self) -> StoreError:
        """Other than no collection yet, one that was there and is gone is not as good as an empty one."""
        return StoreError(
            f"{self.name} was removed since this program opened it, perhaps by rag gc after a reindex: start again "
            "with the settings that rag status shows"
        )

    def ensure_ready(self, fingerprint: Fingerprint) -> None:
        """Makes the collection and its payload indexes, as far as they are missing."""
        ask = self._server.patiently
        if self._fingerprint(ask) is None:
            settings = server_settings.creation(fingerprint.dimension, self._storage, self._cluster)
            try:
                ask(
                    "make",
                    lambda: self._client.create_collection(
                        self._name, metadata={METADATA_KEY: self._metadata(fingerprint)}, **settings
                    ),
                )
            except StoreError:
                # Else another writer was first, or this one was and the answer was lost.
                if self._fingerprint(ask) is None:
                    raise
        for field in payload.INDEXED_FIELDS:
            if field not in self._indexes:
                self._index(field, "keyword", ask)

    def close(self) -> None:
        """Closes the connections. Closing twice is fine."""
        if not self._chosen:  # else they are those of the store that it was made by
            self._server.close()

    def _metadata(self, fingerprint: Fingerprint) -> dict[str, Any]:
        return fingerprint.to_dict() | ({"generation": self._at, "builder": own_note()} if self._chosen else {})

    # ------------------------------------------------------------------ writing

    def upsert(self, chunks: Sequence[Chunk], vectors: NDArray[np.float32]) -> None:
        """Writes chunks, a hundred or so a request and some requests at once; the server has applied all on return."""
        fingerprint = self.fingerprint()
        if fingerprint is None:
            raise StoreError(f"{self.name} does not exist yet: ensure_ready() comes first")
        common.check_vectors(chunks, vectors, fingerprint.dimension)
        self._refuse_left()

        def write(batch: slice) -> None:
            points = [
                server_requests.point(chunk, vector)
                for chunk, vector in zip(chunks[batch], vectors[batch], strict=True)
            ]
            self._server.patiently("write to", partial(self._client.upsert, self._name, points, wait=True))

        # The server logs a request before it applies it: after a crash all of its chunks are there or none.
        parts = common.document_batches(chunks, _WRITE_BATCH, self.whole_chunks)
        with ThreadPoolExecutor(_WRITES_AT_ONCE, "rag-upload") as pool:
            # In the context of the caller, who may give up.
            for one in [pool.submit(copy_context().run, write, part) for part in parts]:
                one.result()

    def delete_chunks(self, point_ids: Iterable[str]) -> int:
        """Removes the chunks that are stored under these ids; returns how many ids there were."""
        doomed = list(point_ids)
        for batch in common.batches(doomed, common.LEDGER_BATCH):
            self._refuse_left()
            selector = models.PointIdsList(points=list(batch))
            self._server.patiently("delete from", partial(self._client.delete, self._name, selector, wait=True))
        return len(doomed)

    def optimize(self, progress: Callable[[str], None] | None = None) -> None:
        """Brings the collection's settings into line; the server then builds its index by itself, in the background."""
        if self._server.local or self.fingerprint() is None:
            return
        ask = self._server.patiently
        config = ask("look up", lambda: self._client.get_collection(self._name)).config
        if unlike := server_settings.other_cluster(config, self._cluster):
            log.warning("%s stays as it was made: %s; that can only be chosen for a new collection", self.name, unlike)
        changes = server_settings.updates(config, self._storage)
        if not changes:
            return
        if progress is not None:
            said = self._storage.changes(server_settings.stored_storage(config))
            progress(f"the server stores the vectors anew ({said})" if said else "the server begins to build its index")
        try:
            ask("change", lambda: self._client.update_collection(self._name, **changes))
        except DeniedError as error:
            log.warning("%s; its settings stay as they are: %s", error, ", ".join(changes))

    # ------------------------------------------------------------------ reading

    def _chunks_of_each(self, field: str) -> tuple[int, dict[Any, int]]:
        name = self._name
        try:
            chunks = self._server.once("count", lambda: self._client.count(name, exact=True)).count
            facet = self._server.once(
                "count", lambda: self._client.facet(name, field, limit=max(1, chunks), exact=True)
            )
        except MissingCollectionError as error:
            raise self._gone() from error
        return chunks, {hit.value: hit.count for hit in facet.hits if hit.count}

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
        nearest = server_requests.nearest(common.query_vectors(text, vector, mode))
        if not nearest or self.fingerprint() is None:
            return []
        condition = server_requests.condition(asked)
        deep = common.depth(limit) if len(nearest) > 1 else limit
        # The client's local mode is exact anyway, and warns of parameters.
        params = known = None
        if not self._server.local:
            params = server_requests.params(
                deep, filtered=condition is not None, exact=exact, oversampling=self._storage.oversampling
            )
            known = server_requests.EXACT

        name = self._name  # for all requests: after a switch the next would go to another collection

        def ask(questions: Sequence[hybrid.Question[Any]]) -> list[dict[Any, float]]:
            requests = [
                server_requests.best(using, nearest[using], deep, condition, params, payload=False)
                if ids is None
                else server_requests.scores(using, nearest[using], ids, known)
                for using, ids in questions
            ]
            return [{point.id: point.score for point in points} for points in self._found(name, requests)]

        def read(ids: Sequence[Any]) -> list[models.Record]:
            return self._server.once("search", partial(self._client.retrieve, name, list(ids), with_payload=True))

        try:
            self._index_filtered(asked)
            if len(nearest) > 1 and fusion == "convex":
                return common.best_chunks(hybrid.search(ask), limit, read)
            if len(nearest) > 1:
                request = server_requests.fused(nearest, fusion, limit, deep, condition, params)
            else:
                ((using, one),) = nearest.items()
                request = server_requests.best(using, one, limit, condition, params, payload=True)
            (found,) = self._found(name, [request])
        except MissingCollectionError as error:
            raise self._gone() from error
        return common.to_candidates((point.id, point.score, point.payload or {}) for point in found)

    def _found(self, name: str, requests: Sequence[models.QueryRequest]) -> list[list[models.ScoredPoint]]:
        answers = self._server.once("search", partial(self._client.query_batch_points, name, requests))
        return [answer.points for answer in answers]

    # ------------------------------------------------------------------ requests

    def _index_filtered(self, asked: Iterable[Iterable[filters.Clause]]) -> None:
        clauses = list(chain.from_iterable(asked))
        changing = any(self._index_due(clause) for clause in clauses)
        if not changing and (not clauses or time.monotonic() - self._looked < _LOOK_AGAIN_S):
            return
        with self._indexing:
            # Before a change too: it would replace an index that somebody else has made meanwhile.
            self._note_indexes(self._server.once("look up", lambda: self._client.get_collection(self._name)))
            for clause in clauses:
                if due := self._index_due(clause):
                    self._try_to_index(clause.path, due)

    def _try_to_index(self, path: str, index: filters.IndexType) -> None:
        name = filters.unquoted(path)
        try:
            self._index(path, index, self._server.once)
        except (DeniedError, StoreUnavailableError) as error:
            if name in self._indexes:  # the one that there is would answer wrongly
                raise
            # A key that may only read, or an index that takes longer to build than a request may: the search is right
            # without, only slower, and says so itself where the server insists on an index.
            self._indexes[name] = "" if isinstance(error, DeniedError) else index

    def _index_due(self, clause: filters.Clause) -> filters.IndexType | None:
        return clause.index_due(self._indexes.get(filters.unquoted(clause.path)))

    def _note_indexes(self, info: models.CollectionInfo) -> None:
        schema = info.payload_schema.items()
        self._indexes.update({filters.unquoted(path): index.data_type.value for path, index in schema})
        self._looked = time.monotonic()

    def _index(self, path: str, index: filters.IndexType, ask: Ask) -> None:
        """Makes a field's index; the server replaces one of another type in the same step."""
        if not self._server.local:  # local mode has no indexes, and warns
            ask(
                "make an index in",
                lambda: self._client.create_payload_index(self._name, path, _INDEX_TYPES[index], wait=True),
            )
        self._indexes[filters.unquoted(path)] = index

    def _scroll(
        self, condition: models.Filter | None, fields: list[str], *, vectors: bool = False
    ) -> Iterator[models.Record]:
        if self._fingerprint(self._server.patiently) is None:
            return
        name, offset = self._name, None
        while True:
            try:
                records, offset = self._server.patiently(
                    "read",
                    partial(
                        self._client.scroll,
                        name,
                        scroll_filter=condition,
                        limit=_READ_VECTORS if vectors else _READ_BATCH,
                        offset=offset,
                        with_payload=fields,
                        with_vectors=[common.DENSE] if vectors else False,
                    ),
                )
            except MissingCollectionError as error:
                raise self._gone() from error
            yield from records
            if offset is None:
                return
