"""A collection's settings on a Qdrant server: those that it is made with, and what an existing one lacks.

A collection is made with its HNSW index deferred, because a graph that is built while the first chunks stream in is
built again and again. :meth:`pipeline.stores.server.ServerStore.optimize`, at the end of every ingest, turns it on, and
so does the next ingest after one that was cut off. Deferred means a very high ``indexing_threshold``, which Qdrant
advises rather than ``m = 0`` (https://github.com/qdrant/skills, "indexing performance optimization"), and which is told
from any threshold that a person would set.
"""

from __future__ import annotations

from typing import Any

from qdrant_client import models

from pipeline.stores import common
from pipeline.stores.storage import INDEXING_KIB, QUANTILE, Cluster, Storage
from pipeline.types import Quantization

DEFERRED_KIB = 1_000_000_000
"""1 TB of vectors in one segment: more than there ever are."""


def creation(dimension: int, storage: Storage, cluster: Cluster) -> dict[str, Any]:
    """Arguments of the client's ``create_collection``; what is not asked for is left to the server."""
    on_disk = storage.on_disk
    dense = models.VectorParams(size=dimension, distance=models.Distance.COSINE, on_disk=on_disk)
    asked = {
        "quantization_config": _quantization() if storage.quantization == "int8" else None,
        "on_disk_payload": on_disk or None,  # by default they are on disk
        "shard_number": cluster.shards,
        "replication_factor": cluster.replication,
        "write_consistency_factor": cluster.write_consistency,
    }
    return {
        "vectors_config": {common.DENSE: dense},
        "sparse_vectors_config": {common.SPARSE: _sparse(on_disk)},
        "hnsw_config": models.HnswConfigDiff(
            m=common.HNSW_M, ef_construct=common.HNSW_EF_CONSTRUCT, full_scan_threshold=INDEXING_KIB
        ),
        "optimizers_config": models.OptimizersConfigDiff(indexing_threshold=DEFERRED_KIB),
        **{name: value for name, value in asked.items() if value is not None},
    }


def updates(config: models.CollectionConfig, storage: Storage) -> dict[str, Any]:
    """Arguments of the client's ``update_collection`` that bring a collection into line; empty if it is."""
    stored, found = stored_storage(config), dict[str, Any]()
    if is_deferred(config):
        found["optimizers_config"] = models.OptimizersConfigDiff(indexing_threshold=INDEXING_KIB)
    if storage.quantization not in (None, stored.quantization):
        found["quantization_config"] = _quantization() if storage.quantization == "int8" else models.Disabled.DISABLED
    if storage.on_disk not in (None, stored.on_disk):
        found["vectors_config"] = {common.DENSE: models.VectorParamsDiff(on_disk=storage.on_disk)}
        found["sparse_vectors_config"] = {common.SPARSE: _sparse(storage.on_disk)}
        if storage.on_disk:
            found["collection_params"] = models.CollectionParamsDiff(on_disk_payload=True)
    return found


def is_deferred(config: models.CollectionConfig) -> bool:
    """Whether the HNSW index waits for the end of an ingest, be it under way or cut off."""
    return config.optimizer_config.indexing_threshold == DEFERRED_KIB


def stored_storage(config: models.CollectionConfig) -> Storage:
    """How an existing collection keeps its vectors; ``quantization`` is None for a kind that is none of ours."""
    kind = config.quantization_config
    quantization: Quantization | None = "int8" if isinstance(kind, models.ScalarQuantization) else None
    vectors = config.params.vectors
    dense = vectors.get(common.DENSE) if isinstance(vectors, dict) else None
    on_disk = dense is not None and (bool(dense.on_disk) or dense.memory == models.Memory.COLD)
    return Storage(quantization=quantization if kind else "none", on_disk=on_disk)


def other_cluster(config: models.CollectionConfig, cluster: Cluster) -> str:
    """Where an existing collection is not spread as asked for, which only a new one can be; empty if it is."""
    params = config.params
    pairs = [
        ("RAG_QDRANT_SHARDS", cluster.shards, params.shard_number or 1),
        ("RAG_QDRANT_REPLICATION", cluster.replication, params.replication_factor or 1),
        ("RAG_QDRANT_WRITE_CONSISTENCY", cluster.write_consistency, params.write_consistency_factor or 1),
    ]
    return ", ".join(f"{name}={asked} but it has {has}" for name, asked, has in pairs if asked not in (None, has))


def _quantization() -> models.ScalarQuantization:
    return models.ScalarQuantization(
        scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=QUANTILE, always_ram=True)
    )


def _sparse(on_disk: bool | None) -> models.SparseVectorParams:
    index = None if on_disk is None else models.SparseIndexParams(on_disk=on_disk)
    return models.SparseVectorParams(modifier=models.Modifier.IDF, index=index)
