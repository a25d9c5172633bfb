"""``rag reindex``, ``rag rollback`` and ``rag gc`` from the command line, with the model of the package."""

from __future__ import annotations

import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pipeline.core import Pipeline
from pipeline.errors import FingerprintError, SettingsError
from pipeline.ingestion.reindexing import rollback
from pipeline.stores.connection import connect
from pipeline.stores.edge import EdgeStore
from pipeline.stores.server import ServerStore
from pipeline.types import Document
from tests.fakes import FakeEmbedder
from tests.integration.conftest import Rag
from tests.loopback import Loopback
from tests.qdrant_rest import QdrantRest


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert 0 == done.returncode, done.stderr
    return done.stdout.splitlines()


def test_from_ingest_to_gc(rag: Rag) -> None:
    """Each step says what it did and which settings to set; the settings of the other side are refused with advice."""
    text = " ".join(f"Sentence number {n} of the manual is about valves and pumps." for n in range(60))
    (rag.folder / "manual.txt").write_text(text)
    (rag.folder / "short.txt").write_text("The museum opens at nine.")
    assert 2 == rag.json("ingest", "manual.txt", "short.txt")["documents"]["new"]

    done = lines(rag("reindex", "--chunk-tokens", "64", "--chunk-overlap", "16"))
    assert "2 documents, 2 of them cut anew" in done[0]
    assert "documents.2 is in use now; documents is kept for rag rollback, rag gc removes it" == done[1]
    assert ["RAG_CHUNK_TOKENS=64", "RAG_CHUNK_OVERLAP=16"] == done[-2:]
    new: dict[str, Any] = dict(line.split("=") for line in done[-2:])

    found = rag.json("status")
    states = {one["name"]: (one["state"], one["fingerprint"]["chunk_tokens"]) for one in found["generations"]}
    assert {"documents": ("kept", 256), "documents.2": ("current", 64)} == states
    assert "documents (kept for rag rollback)" in rag("status").stdout

    refused = rag("ingest", "manual.txt")
    assert 1 == refused.returncode
    assert "chunk_tokens: stored 64, asked for 256" in refused.stderr
    assert "rag reindex" in refused.stderr
    assert 2 == rag.json("ingest", "manual.txt", "short.txt", **new)["documents"]["unchanged"]
    assert "museum" in rag.json("query", "when does the museum open", **new)["hits"][0]["text"]
    assert rag.json("reindex", **new)["kept"] is None

    done = lines(rag("rollback"))
    assert "documents is in use again; documents.2 is kept" == done[0]
    assert ["RAG_CHUNK_TOKENS=256", "RAG_CHUNK_OVERLAP=32"] == done[-2:]
    assert 2 == rag.json("ingest", "manual.txt", "short.txt")["documents"]["unchanged"]

    assert ["documents.2"] == [one["name"] for one in rag.json("gc", "--dry-run")["removed"]]
    assert lines(rag("gc"))[0].startswith("removed documents.2 (kept for rag rollback)")
    assert ["nothing to remove: there is only the collection in use"] == lines(rag("gc"))
    again = rag("rollback")
    assert 2 == again.returncode
    assert "no collection is kept" in again.stderr
    assert ["documents"] == [one["name"] for one in rag.json("status")["generations"]]


def test_a_refused_reindex_leaves_nothing(rag: Rag) -> None:
    """Where another process has the store, that is found before anything is made beside it."""
    (rag.folder / "short.txt").write_text("The museum opens at nine.")
    assert 1 == rag.json("ingest", "short.txt")["documents"]["new"]
    with closing(EdgeStore(rag.folder / "data" / "collections" / "documents")) as held:
        assert 1 == held.count().documents
        refused = rag("reindex", "--chunk-tokens", "64", "--chunk-overlap", "16")
    assert 1 == refused.returncode
    assert "is in use by process" in refused.stderr
    assert ["documents"] == [one["name"] for one in rag.json("status")["generations"]]


def test_a_version_that_makes_bm25_vectors_otherwise(tmp_path: Path) -> None:
    """It says that there is one way, and does not go back to what it could not query."""

    embedder = FakeEmbedder()

    def opened(bm25: str | None = None) -> Pipeline:
        store = EdgeStore(tmp_path / "documents")
        store.bm25 = bm25 or store.bm25
        return Pipeline(embedder=embedder, store=store)

    with opened("older") as old:
        old.ingest([Document("d1", "valves and pumps")])
    with opened() as new:
        with pytest.raises(FingerprintError, match=r"stored 'older'.*which no setting changes: rag reindex$"):
            new.query("valves")
        assert 1 == new.reindex().documents
        assert ["valves and pumps"] == embedder.embedded  # once, by the ingest: the model stays the same
        assert 1 == len(new.query("valves").hits)
        with pytest.raises(SettingsError, match="BM25 vectors of another version"):
            rollback(new.store)
        assert 1 == len(new.query("pumps").hits)


def test_over_the_wire() -> None:
    """On a server the switch is one request, which moves both aliases."""
    qdrant = QdrantRest()
    with Loopback(qdrant) as server:

        def open_one(model: str, dimension: int) -> Pipeline:
            store = ServerStore(connect(server.url), "documents")
            return Pipeline(embedder=FakeEmbedder(dimension, model), store=store)

        with open_one("old", 16) as old, open_one("new", 24) as new:
            old.ingest([Document(f"d{i}", f"text {i}") for i in range(5)])
            new.reindex()
            assert 5 == len(list(new.documents()))
            aliases = {one.alias_name: one.collection_name for one in qdrant.client.get_aliases().aliases}
            assert {"documents.current": "documents.2", "documents.kept": "documents"} == aliases
            new.ingest([Document("d9", "text 9")])
            assert 6 == len(list(new.documents()))
            assert 5 == len(list(old.documents()))
