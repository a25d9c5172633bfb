"""What is asked of a collection, against what it is."""

from __future__ import annotations

from typing import Any

import pytest
from qdrant_client import models

from pipeline.stores import edge_requests
from pipeline.stores.server_settings import DEFERRED_KIB, creation, other_cluster, stored_storage, updates
from pipeline.stores.storage import INDEXING_KIB, Cluster, Storage

PLAIN = Storage("none", on_disk=False)
BOTH = Storage("int8", on_disk=True)


@pytest.mark.parametrize(
    ("asked", "stored", "said"),
    [
        (Storage(), PLAIN, ""),
        (Storage(), BOTH, ""),
        (BOTH, BOTH, ""),
        (Storage("int8"), PLAIN, "quantization none -> int8"),
        (Storage("none"), BOTH, "quantization int8 -> none"),
        (Storage(on_disk=False), BOTH, "vectors disk -> memory"),
        (BOTH, PLAIN, "quantization none -> int8, vectors memory -> disk"),
        (Storage("int8"), Storage(None, on_disk=True), "quantization other -> int8"),
        (Storage(), Storage(None, on_disk=True), ""),
    ],
)
def test_only_what_is_asked_for_changes(asked: Storage, stored: Storage, said: str) -> None:
    assert said == asked.changes(stored)


@pytest.mark.parametrize("storage", [PLAIN, BOTH, Storage("int8", on_disk=False), Storage("none", on_disk=True)])
def test_the_engine_s_file_tells_how_vectors_are_kept(storage: Storage) -> None:
    """In the engine's own words; tests/integration/test_edge_store.py has it write them."""
    dense: dict[str, Any] = {"size": 4, "distance": "Cosine"}
    if storage.quantization == "int8":
        dense["quantization_config"] = {"scalar": {"type": "int8", "quantile": 0.99, "memory": "pinned"}}
    if storage.on_disk:
        dense["memory"] = "cold"
    assert storage == edge_requests.storage({"vectors": {"dense": dense}})


def config(**changes: Any) -> models.CollectionConfig:
    """What a server answers about a collection that was made with :func:`creation`."""
    options: dict[str, Any] = {"storage": Storage(), "cluster": Cluster(), "threshold": INDEXING_KIB} | changes
    made = creation(4, options["storage"], options["cluster"])
    return models.CollectionConfig(
        params=models.CollectionParams(
            vectors=made["vectors_config"],
            sparse_vectors=made["sparse_vectors_config"],
            shard_number=made.get("shard_number"),
            replication_factor=made.get("replication_factor"),
            write_consistency_factor=made.get("write_consistency_factor"),
        ),
        hnsw_config=models.HnswConfig(m=16, ef_construct=200, full_scan_threshold=10_000),
        optimizer_config=models.OptimizersConfig(
            deleted_threshold=0.2,
            vacuum_min_vector_number=1000,
            default_segment_number=0,
            flush_interval_sec=5,
            indexing_threshold=options["threshold"],
        ),
        quantization_config=made.get("quantization_config"),
    )


def test_what_a_collection_is_made_with_is_read_back() -> None:
    for storage in (PLAIN, BOTH, Storage("int8", on_disk=False)):
        assert storage == stored_storage(config(storage=storage))
        assert {} == updates(config(storage=storage), storage)
        assert {} == updates(config(storage=storage), Storage())
        assert DEFERRED_KIB == creation(4, storage, Cluster())["optimizers_config"].indexing_threshold


def test_a_deferred_index_is_due_whatever_is_asked_for() -> None:
    found = updates(config(threshold=DEFERRED_KIB), Storage())
    assert {"optimizers_config": models.OptimizersConfigDiff(indexing_threshold=INDEXING_KIB)} == found
    assert {} == updates(config(threshold=0), Storage())  # switched off by a person


def test_another_kind_of_quantization_stays_unless_one_is_asked_for() -> None:
    binary = config()
    binary.quantization_config = models.BinaryQuantization(binary=models.BinaryQuantizationConfig())
    assert {} == updates(binary, Storage())
    assert models.Disabled.DISABLED == updates(binary, Storage("none"))["quantization_config"]
    assert isinstance(updates(binary, Storage("int8"))["quantization_config"], models.ScalarQuantization)


def test_a_spread_is_compared_where_it_is_asked_for() -> None:
    made = config(cluster=Cluster(4, 2, 1))
    assert "" == other_cluster(made, Cluster())
    assert "" == other_cluster(made, Cluster(4, 2, 1))
    assert "RAG_QDRANT_REPLICATION=3 but it has 2" == other_cluster(made, Cluster(shards=4, replication=3))
    assert "" == other_cluster(config(), Cluster(1, 1, 1))
