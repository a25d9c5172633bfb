"""Requests to a Qdrant server, from chunks, clauses and queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qdrant_client import models

from pipeline.stores import bm25, common, filters, payload
from pipeline.types import Chunk, HybridFusion

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def nearest(vectors: Mapping[str, Any]) -> dict[str, Any]:
    """A query by each of the vectors, by its name."""
    return {
        name: models.NearestQuery(nearest=_sparse(vector) if name == common.SPARSE else vector)
        for name, vector in vectors.items()
    }


def _sparse(vector: Any) -> models.SparseVector:
    return models.SparseVector(indices=vector.indices, values=vector.values)


def params(limit: int, *, filtered: bool, exact: bool, oversampling: float) -> models.SearchParams:
    """How a list of so many hits is searched for."""
    return models.SearchParams(
        hnsw_ef=common.hnsw_ef(limit, filtered=filtered),
        exact=exact,
        # Without effect where nothing is filtered.
        acorn=models.AcornSearchParams(enable=True, max_selectivity=common.ACORN_MAX_SELECTIVITY),
        # Without effect where nothing is quantized.
        quantization=models.QuantizationSearchParams(ignore=exact, rescore=True, oversampling=oversampling),
    )


EXACT = models.SearchParams(exact=True, quantization=models.QuantizationSearchParams(ignore=True))
"""How known points are scored."""


def best(
    name: str,
    one: Any,
    limit: int,
    condition: models.Filter | None,
    params: models.SearchParams | None,
    *,
    payload: bool,
) -> models.QueryRequest:
    """The points nearest to one vector, which has this name."""
    return models.QueryRequest(
        query=one, using=name, limit=limit, filter=condition, params=params, with_payload=payload
    )


def fused(
    nearest: Mapping[str, Any],
    fusion: HybridFusion,
    limit: int,
    deep: int,
    condition: models.Filter | None,
    params: models.SearchParams | None,
) -> models.QueryRequest:
    """Lists of ``deep`` points each, fused by the server."""
    how: Any = models.FusionQuery(fusion=models.Fusion.DBSF)
    if fusion == "rrf":
        how = models.RrfQuery(rrf=models.Rrf(k=common.RRF_K))
    prefetches = [
        models.Prefetch(query=one, using=name, limit=deep, filter=condition, params=params)
        for name, one in nearest.items()
    ]
    return models.QueryRequest(query=how, prefetch=prefetches, limit=limit, filter=condition, with_payload=True)


def scores(name: str, one: Any, ids: Sequence[Any], params: models.SearchParams | None) -> models.QueryRequest:
    """The scores of these points by one vector, which has this name."""
    known = models.Filter(must=[models.HasIdCondition(has_id=list(ids))])
    return best(name, one, len(ids), known, params, payload=False)


def point(chunk: Chunk, vector: NDArray[np.float32]) -> models.PointStruct:
    """A chunk with its vectors, as it is stored."""
    vectors = {common.DENSE: vector.tolist(), common.SPARSE: _sparse(bm25.chunk_vector(chunk.title, chunk.text))}
    return models.PointStruct(id=chunk.id, vector=vectors, payload=payload.to_payload(chunk))


def documents(document_ids: Sequence[str]) -> models.Filter:
    """Chunks of these documents."""
    return models.Filter(must=[_one_of("document_id", document_ids)])


def related(names: Sequence[str], content_hashes: Sequence[str]) -> models.Filter:
    """Chunks that have one of these names as id or source, or one of these contents."""
    return models.Filter(
        should=[_one_of("document_id", names), _one_of("source", names), _one_of("content_hash", content_hashes)]
    )


def _one_of(field: str, values: Sequence[str]) -> models.FieldCondition:
    return models.FieldCondition(key=field, match=models.MatchAny(any=[payload.clean(value) for value in values]))


def condition(where: Sequence[Sequence[filters.Clause]]) -> models.Filter | None:
    """The alternatives as the server's filter; None for none."""
    every: list[Any] = [_all_of(clauses) for clauses in where]
    if len(every) > 1:
        return models.Filter(should=every)
    return every[0] if every else None


def _all_of(clauses: Sequence[filters.Clause]) -> models.Filter:
    return models.Filter(
        must=[_any_of(clause) for clause in clauses if not clause.negated] or None,
        must_not=[_any_of(clause) for clause in clauses if clause.negated] or None,
    )


def _any_of(clause: filters.Clause) -> Any:
    conditions: list[Any] = [_condition(clause.path, test) for test in clause.tests]
    return conditions[0] if len(conditions) == 1 else models.Filter(should=conditions)


def _condition(path: str, test: filters.Test) -> models.FieldCondition | models.IsEmptyCondition:
    match test:
        case filters.Missing():
            return models.IsEmptyCondition(is_empty=models.PayloadField(key=path))
        case filters.Words(values):
            return models.FieldCondition(key=path, match=models.MatchAny(any=list(values)))
        case filters.Exactly(value):
            return models.FieldCondition(key=path, match=models.MatchValue(value=value))
        case filters.NumberRange(gt=gt, gte=gte, lt=lt, lte=lte):
            return models.FieldCondition(key=path, range=models.Range(gt=gt, gte=gte, lt=lt, lte=lte))
        case filters.DateRange():
            bounds = {operator: getattr(test, operator) for operator in filters.OPERATORS}
            return models.FieldCondition(key=path, range=models.DatetimeRange(**bounds))
