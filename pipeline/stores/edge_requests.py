"""Requests to the embedded engine, from chunks, clauses and queries, and its configuration."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import qdrant_edge as edge

from pipeline.stores import bm25, common, filters, payload
from pipeline.stores.storage import QUANTILE, Storage
from pipeline.types import Chunk, HybridFusion, Quantization

if TYPE_CHECKING:
    from numpy.typing import NDArray


def vectors(dimension: int, storage: Storage) -> dict[str, Any]:
    """Arguments of ``EdgeConfig`` that say how vectors are kept."""
    memory = edge.Memory.Cold if storage.on_disk else None
    int8 = None
    if storage.quantization == "int8":
        int8 = edge.ScalarQuantizationConfig(edge.ScalarType.Int8, quantile=QUANTILE, memory=edge.Memory.Pinned)
    dense = edge.EdgeVectorParams(dimension, edge.Distance.Cosine, quantization_config=int8, memory=memory)
    sparse = edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf, memory=memory)
    return {"vectors": {common.DENSE: dense}, "sparse_vectors": {common.SPARSE: sparse}}


def storage(config: Mapping[str, Any]) -> Storage:
    """How vectors are kept by an engine whose ``edge_config.json`` this is."""
    dense = config["vectors"][common.DENSE]
    kind: Quantization = "int8" if dense.get("quantization_config") else "none"  # there are no others of our making
    return Storage(quantization=kind, on_disk=dense.get("memory") == "cold")


def nearest(vectors: Mapping[str, Any]) -> dict[str, Any]:
    """A query by each of the vectors, by its name."""
    return {name: edge.Query.Nearest(vector, using=name) for name, vector in vectors.items()}


def params(limit: int, *, filtered: bool, exact: bool, oversampling: float) -> edge.SearchParams:
    """How a list of so many hits is searched for."""
    return edge.SearchParams(
        hnsw_ef=common.hnsw_ef(limit, filtered=filtered),
        exact=exact,
        # Without effect where nothing is filtered.
        acorn=edge.AcornSearchParams(enable=True, max_selectivity=common.ACORN_MAX_SELECTIVITY),
        # Without effect where nothing is quantized.
        quantization=edge.QuantizationSearchParams(ignore=exact, rescore=True, oversampling=oversampling),
    )


def best(
    one: Any, limit: int, condition: edge.Filter | None, params: edge.SearchParams, *, payload: bool
) -> edge.QueryRequest:
    """The points nearest to one vector."""
    return edge.QueryRequest(limit=limit, query=one, filter=condition, params=params, with_payload=payload)


def fused(
    lists: Iterable[Any],
    fusion: HybridFusion,
    limit: int,
    deep: int,
    condition: edge.Filter | None,
    params: edge.SearchParams,
) -> edge.QueryRequest:
    """Lists of ``deep`` points each, fused by the engine."""
    how: Any = edge.Fusion.Rrf(k=common.RRF_K) if fusion == "rrf" else edge.Fusion.Dbsf()
    prefetches = [edge.Prefetch(deep, one, params=params, filter=condition) for one in lists]
    return edge.QueryRequest(limit=limit, query=how, prefetches=prefetches, filter=condition, with_payload=True)


def scores(one: Any, ids: Collection[Any]) -> edge.QueryRequest:
    """The exact scores of these points by one vector."""
    return edge.QueryRequest(
        limit=len(ids),
        query=one,
        filter=edge.Filter(must=[edge.HasIdCondition(set(ids))]),
        params=edge.SearchParams(exact=True, quantization=edge.QuantizationSearchParams(ignore=True)),
    )


def point(chunk: Chunk, vector: NDArray[np.float32]) -> edge.Point:
    """A chunk with its vectors, as it is stored."""
    vectors = {common.DENSE: vector.tolist(), common.SPARSE: bm25.chunk_vector(chunk.title, chunk.text)}
    return edge.Point(chunk.id, vectors, payload.to_payload(chunk))


def documents(document_ids: Sequence[str]) -> edge.Filter:
    """Chunks of these documents."""
    return edge.Filter(must=[_one_of("document_id", document_ids)])


def related(names: Sequence[str], content_hashes: Sequence[str]) -> edge.Filter:
    """Chunks that have one of these names as id or source, or one of these contents."""
    return edge.Filter(
        should=[_one_of("document_id", names), _one_of("source", names), _one_of("content_hash", content_hashes)]
    )


def _one_of(field: str, values: Sequence[str]) -> edge.FieldCondition:
    return edge.FieldCondition(field, match=edge.MatchAny([payload.clean(value) for value in values]))


def condition(where: Sequence[Sequence[filters.Clause]]) -> edge.Filter | None:
    """The alternatives as the engine's filter; None for none."""
    every: list[Any] = [_all_of(clauses) for clauses in where]
    if len(every) > 1:
        return edge.Filter(should=every)
    return every[0] if every else None


def _all_of(clauses: Sequence[filters.Clause]) -> edge.Filter:
    return edge.Filter(
        must=[_any_of(clause) for clause in clauses if not clause.negated] or None,
        must_not=[_any_of(clause) for clause in clauses if clause.negated] or None,
    )


def _any_of(clause: filters.Clause) -> Any:
    conditions: list[Any] = [_condition(clause.path, test) for test in clause.tests]
    return conditions[0] if len(conditions) == 1 else edge.Filter(should=conditions)


def _condition(path: str, test: filters.Test) -> edge.FieldCondition | edge.IsEmptyCondition:
    match test:
        case filters.Missing():
            return edge.IsEmptyCondition(path)
        case filters.Words(values):
            return edge.FieldCondition(path, match=edge.MatchAny(list(values)))
        case filters.Exactly(value):
            # A Python bool is an int to the binding, which takes True for 1; one of NumPy 2.4 or newer is not.
            exact: Any = np.bool_(value) if isinstance(value, bool) else value
            return edge.FieldCondition(path, match=edge.MatchValue(exact))
        case filters.NumberRange(gt=gt, gte=gte, lt=lt, lte=lte):
            return edge.FieldCondition(path, range=edge.RangeFloat(gt=gt, gte=gte, lt=lt, lte=lte))
        case filters.DateRange(gt=gt, gte=gte, lt=lt, lte=lte):
            return edge.FieldCondition(path, range=edge.RangeDateTime(gt=gt, gte=gte, lt=lt, lte=lte))
