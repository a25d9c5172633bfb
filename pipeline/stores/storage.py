"""How a collection is kept: what costs or saves memory, disk and time, and never changes what its vectors mean.

None of it is in the fingerprint. A collection that was made with other options goes on answering; an ingest brings it
into line at its end (:meth:`pipeline.interfaces.Store.optimize`).
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.types import Quantization

INDEXING_KIB = 20_000
"""Vectors (KiB) from which on a segment gets an HNSW index, and from which on a filter must let through for it to be
used. Below, brute force is exact and as fast: 1.4 ms for 20,000 chunks of 384 dimensions, which are 30,000 KiB."""

QUANTILE = 0.99
"""Share of the numbers that int8 covers; the few beyond are clipped, so that the others are told apart more finely
(https://qdrant.tech/documentation/guides/quantization)."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Options of a collection. None means: as it is, which for a new one is no quantization, and vectors in memory."""

    quantization: Quantization | None = None
    """``int8``: besides each dense vector a copy of a byte a dimension, always in memory. Candidates are found with the
    copies and rescored with the vectors themselves."""
    on_disk: bool | None = None
    """Dense vectors and the BM25 index are read from disk as they are needed. Payloads always are."""
    oversampling: float = 2.0
    """How many times the hits asked for are found with the copies and rescored."""

    def over(self, stored: Storage) -> Storage:
        """These options, and where nothing is asked for those of the stored collection."""
        return Storage(
            quantization=self.quantization or stored.quantization,
            on_disk=stored.on_disk if self.on_disk is None else self.on_disk,
            oversampling=self.oversampling,
        )

    def changes(self, stored: Storage) -> str:
        """What these options change in the stored collection, in words; empty for nothing."""
        wanted, said = self.over(stored), []
        if wanted.quantization != stored.quantization:
            said.append(f"quantization {stored.quantization or 'other'} -> {wanted.quantization}")
        if wanted.on_disk != stored.on_disk:
            places = {True: "disk", False: "memory"}
            said.append(f"vectors {places[bool(stored.on_disk)]} -> {places[bool(wanted.on_disk)]}")
        return ", ".join(said)


@dataclass(frozen=True, slots=True)
class Cluster:
    """How a new collection is spread over a Qdrant cluster; None leaves it to the server."""

    shards: int | None = None
    replication: int | None = None
    """Copies of each shard."""
    write_consistency: int | None = None
    """Copies that must have a write before it counts as done."""
