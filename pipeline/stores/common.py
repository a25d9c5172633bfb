"""What both stores do alike: how a collection is laid out and searched, and what is made of its answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pipeline.embedding import first_not_finite
from pipeline.errors import SettingsError, StoreError
from pipeline.stores import bm25
from pipeline.stores.payload import clean, is_chunk, to_chunk
from pipeline.types import Candidate, Chunk, SearchMode

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")
Id = TypeVar("Id")

DENSE, SPARSE = "dense", "bm25"
"""Names of the two vectors of a chunk."""

# HNSW's graph: m links a point (Qdrant's default), and twice Qdrant's effort (100) in building it. On 20,000 chunks of
# 384 dimensions with ef = 512 the top 100 agrees with exact search at 0.996; with the default effort at 0.993.
HNSW_M, HNSW_EF_CONSTRUCT = 16, 200

ACORN_MAX_SELECTIVITY = 0.6
"""Share of the chunks up to which a filter has the graph walked by ACORN: from a neighbour that does not pass on to its
neighbours (https://qdrant.tech/documentation/search/search, "ACORN search algorithm"). Where fewer than
:data:`~pipeline.stores.storage.INDEXING_KIB` pass, they are scanned and no graph is walked.

Else the walk ends where no neighbour passes. Qdrant's other remedy, links between the chunks that share a value, is for
fields that have an index when the graph is built, each of which makes that slower by a third, and for no two fields
together. Which fields are filtered by is known later, when they are. Agreement of the top 100 with exact search,
without ACORN and with it, ef = 512, 57,000 distinct passages of 384 dimensions (milliseconds): where a tenth passes
0.41 (1.0) and 0.998 (9.3), a tenth and a third at once 0.02 (0.1) and 0.98 (8.3), a half 0.983 (1.7) and 1.000 (9.5),
six tenths 0.990 (1.9) and 1.000 (8.9).
"""

RRF_K = 60
"""Rank constant of reciprocal rank fusion (Cormack, Clarke and Buettcher, 2009); the engine's own default is 2."""

LEDGER_BATCH = 1_000
"""Documents that one filter names, and points that one deletion names."""


def depth(limit: int) -> int:
    """How many hits each of the two lists has that are fused: a list of ten cannot show what the other is missing."""
    return max(limit, 100)


def hnsw_ef(limit: int, *, filtered: bool) -> int:
    """Breadth of the HNSW search for ``limit`` hits.

    It must be well above the limit, and the more chunks there are the more so. At 512 the right ones of the top 100 are
    0.999 of 12,500 chunks, 0.997 of 25,000 and 0.990 of 50,000 (384 dimensions), at 1,024 they are 1.000, 1.000 and
    0.998, in 4.6 instead of 2.7 ms. With a filter fewer chunks compete, and ACORN looks at more of them at each step:
    twice the breadth there takes twice the time for what is no longer missing.
    """
    return max(512 if filtered else 1_024, 4 * limit)


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in runs of at most ``size``."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def document_batches(chunks: Sequence[Chunk], size: int, longest: int) -> Iterator[slice]:
    """Runs of at most ``size`` chunks that end where a document does.

    A document of more than that has a run to itself, and one of more than ``longest`` has several.
    """
    start, place = 0, 0
    for _, group in groupby(chunks, key=lambda chunk: (chunk.document_id, chunk.content_hash)):
        count = sum(1 for _ in group)
        if place > start and (place + count - start > size or count > longest):
            yield slice(start, place)
            start = place
        place += count
        while count > longest and place - start > longest:
            yield slice(start, start + longest)
            start += longest
    if place > start:
        yield slice(start, place)


def ledger_batches(document_ids: Sequence[str] | None) -> Iterator[Sequence[str] | None]:
    """Distinct document ids in runs for one filter each; None, which means all documents, stays None."""
    if document_ids is None:
        yield None
    else:
        yield from batches(list(dict.fromkeys(document_ids)), LEDGER_BATCH)


def query_vectors(text: str, vector: NDArray[np.float32] | None, mode: SearchMode) -> dict[str, Any]:
    """What is searched for, by the vector's name: numbers for the dense one, indices and values for BM25.

    Empty if nothing can be found: a sparse query without words.

    Raises:
        SettingsError: the mode is unknown or needs a vector and there is none.
    """
    if mode not in ("hybrid", "dense", "sparse"):
        raise SettingsError(f"search mode {mode!r} is unknown; allowed are hybrid, dense and sparse")
    found: dict[str, Any] = {}
    if mode != "sparse":
        if vector is None:
            raise SettingsError(f"a {mode} search needs the query's vector")
        found[DENSE] = np.asarray(vector, dtype=np.float32).tolist()
    if mode != "dense":
        words = bm25.query_vector(text)
        if words.indices:
            found[SPARSE] = words
    return found


def dense_vector(stored: Any) -> NDArray[np.float32]:
    """The dense vector of a record that was read with its vectors."""
    return np.asarray(stored[DENSE], dtype=np.float32)


def best_chunks(
    scores: Mapping[Id, float], limit: int, read: Callable[[Sequence[Id]], Iterable[Any]]
) -> list[Candidate]:
    """Candidates from the first points of some, best first, until there are ``limit``.

    ``read`` gives records with ``id`` and ``payload``, in any order. What it lacks was deleted a moment ago; it and
    what others wrote into the collection is passed over.
    """
    found: list[tuple[object, float, Mapping[str, Any]]] = []
    left = list(scores)
    while left and len(found) < limit:
        part, left = left[: limit - len(found)], left[limit - len(found) :]
        points = ((record.id, scores[record.id], record.payload or {}) for record in read(part))
        found.extend(point for point in points if is_chunk(point[2]))
    return to_candidates(found)


def to_candidates(points: Iterable[tuple[object, float, Mapping[str, Any]]]) -> list[Candidate]:
    """Candidates from (point id, score, payload), best first. Equal scores go by id: the engine leaves them open."""
    ordered = sorted(points, key=lambda point: (-point[1], str(point[0])))
    ours = ((score, payload) for _, score, payload in ordered if is_chunk(payload))
    return [Candidate(to_chunk(payload), float(score), rank) for rank, (score, payload) in enumerate(ours, 1)]


def to_chunks(payloads: Iterable[Mapping[str, Any]]) -> Iterator[Chunk]:
    """The chunks among some points; what others wrote into the collection is passed over."""
    return (to_chunk(payload) for payload in payloads if is_chunk(payload))


def to_chunks_with_vectors(
    points: Iterable[tuple[Mapping[str, Any], Any]],
) -> Iterator[tuple[Chunk, NDArray[np.float32]]]:
    """As :func:`to_chunks`, of points with the vectors that the engine gives."""
    return ((to_chunk(payload), dense_vector(stored)) for payload, stored in points if is_chunk(payload))


def stale_ids(points: Iterable[tuple[str, Mapping[str, Any]]], stale: Mapping[str, Set[str]]) -> list[str]:
    """Ids of the points, given with their payloads, whose version is among the stale ones."""
    doomed = {clean(document_id): content_hashes for document_id, content_hashes in stale.items()}
    return [
        point_id
        for point_id, payload in points
        if payload["content_hash"] in doomed.get(payload["document_id"], frozenset())
    ]


DIGESTED = ("document_id", "content_hash")
"""Fields whose values, with the number of chunks of each, tell one state of a collection from another."""


def digest(counts: Iterable[tuple[object, int]]) -> str:
    """Of values and how many chunks have each, in whatever order."""
    listed = sorted(f"{count} {value}" for value, count in counts)
    return hashlib.blake2b("\n".join(listed).encode(), digest_size=16).hexdigest()


def check_vectors(chunks: Sequence[Chunk], vectors: NDArray[np.float32], dimension: int) -> None:
    """Refuses what the engine would store without a word and never find again.

    Raises:
        StoreError: the vectors are not of shape (len(chunks), dimension), or some number in them is not finite.
    """
    if vectors.shape != (len(chunks), dimension):
        raise StoreError(
            f"{len(chunks)} chunks came with vectors of shape {vectors.shape}; the collection needs "
            f"({len(chunks)}, {dimension}): is this the embedder that it was made with?"
        )
    row = first_not_finite(vectors)
    if row is not None:
        raise StoreError(f"the vector of a chunk of {chunks[row].document_id} has NaN or infinity in it")
