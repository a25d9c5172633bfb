"""Collections that move: from the embedded store to a server and back, and on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient

from pipeline.core import Pipeline
from pipeline.interfaces import Store
from pipeline.stores.edge import EdgeStore
from pipeline.stores.server import ServerStore
from pipeline.types import Document
from tests.fakes import FakeEmbedder
from tests.integration.conftest import Rag

DOCUMENTS = [
    Document(id=f"d{i}", text=f"Text number{i} 的内容。 " * (3 + i % 20), metadata={"n": i, "odd": "\udce9"})
    for i in range(80)
]


def pipeline(store: Store) -> Pipeline:
    return Pipeline(embedder=FakeEmbedder(), store=store, chunk_tokens=32, chunk_overlap=0)


@pytest.mark.parametrize("vectors", [True, False], ids=["with vectors", "without"])
def test_from_the_embedded_store_to_a_server_and_back(tmp_path: Path, vectors: bool) -> None:
    """Chunks, metadata, vectors and answers are the same on each station."""
    first = pipeline(EdgeStore(tmp_path / "first"))
    server = pipeline(ServerStore(QdrantClient(":memory:"), "documents"))
    last = pipeline(EdgeStore(tmp_path / "last"))
    first.ingest(DOCUMENTS)
    for number, (source, target) in enumerate([(first, server), (server, last)]):
        file = tmp_path / f"{number}.jsonl.gz"
        source.export_to(file, vectors=vectors)
        report = target.import_from(file)
        assert (80, not vectors) == (report.written, report.embedded)
        assert target.verify(DOCUMENTS).clean
    found = [{chunk.id: (chunk, vector) for chunk, vector in rag.store.chunks_with_vectors()} for rag in (first, last)]
    assert found[0].keys() == found[1].keys()
    for id_, (chunk, vector) in found[0].items():
        assert chunk == found[1][id_][0]
        np.testing.assert_allclose(vector, found[1][id_][1], atol=1e-6)
    for rag in (first, server, last):
        assert "d7" == rag.query("number7").hits[0].document_id
    for rag in (first, server, last):
        rag.close()


def test_export_and_import_on_the_command_line(rag: Rag, tmp_path: Path) -> None:
    """Into a collection of another name, which then answers."""
    (tmp_path / "a.md").write_text("# Ports\n\nThe server listens on port 6334 for gRPC.\n")
    rag.json("ingest", "a.md")
    out = rag.json("export", "all.jsonl.gz", "--vectors")
    assert (1, 1, True) == (out["documents"], out["chunks"], out["vectors"])
    back = rag.json("import", "all.jsonl.gz", RAG_COLLECTION="copy")
    assert ({"written": 1, "unchanged": 0}, False) == (back["documents"], back["embedded"])
    assert "6334" in rag.json("query", "gRPC port", RAG_COLLECTION="copy", RAG_RERANKER="none")["hits"][0]["text"]
    again = rag("import", "all.jsonl.gz", RAG_COLLECTION="copy")
    assert (0, True) == (again.returncode, "0 documents written, 1 unchanged" in again.stdout)
    assert 1 == rag.json("ingest", "a.md", RAG_COLLECTION="copy")["documents"]["unchanged"]
    assert 2 == rag("import", "a.md").returncode
    assert 2 == rag("export", "x", RAG_COLLECTION="none").returncode
