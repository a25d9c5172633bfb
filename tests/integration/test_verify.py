"""``rag verify`` on the real engine, in processes of its own."""

from __future__ import annotations

from pathlib import Path

from pipeline.stores.edge import EdgeStore
from tests.integration.conftest import Rag


def test_a_damaged_collection_is_found_mended_and_clean(rag: Rag, tmp_path: Path) -> None:
    """Exit code 1 while something is wrong, 0 when it is not; the repair needs no paths."""
    docs = tmp_path / "docs"
    docs.mkdir()
    for i in range(3):
        (docs / f"{i}.md").write_text(f"# File {i}\n\n" + "\n\n".join(f"Paragraph {j} of it. " * 40 for j in range(9)))
    rag.json("ingest", str(docs))
    assert rag.json("verify", str(docs))["clean"]
    store = EdgeStore(tmp_path / "data" / "collections" / "documents")
    before = {chunk.id for chunk in store.chunks()}
    store.delete_chunks(sorted(before)[:2])
    store.close()
    (docs / "new.md").write_text("New.")

    found = rag.json("verify", code=1)
    assert {"missing"} == {problem["kind"] for problem in found["problems"]}
    done = rag("verify", str(docs))
    assert 1 == done.returncode
    assert "new: " in done.stdout
    assert "chunks are there: ingest it again" in done.stdout

    mended = rag.json("verify", "--repair")
    assert (True, [], len(before)) == (mended["clean"], mended["problems"], mended["chunks"])
    assert mended["repaired"] == found["problems"]
    assert "clean" in rag("verify").stdout


def test_verify_of_nothing(rag: Rag) -> None:
    """No collection is no problem, but said, and none is made."""
    assert (True, False, 0) == tuple(rag.json("verify")[key] for key in ("clean", "exists", "chunks"))
    done = rag("verify")
    assert 0 == done.returncode
    assert "does not exist" in done.stdout
    assert "clean" not in done.stdout
    assert not (rag.folder / "data" / "collections").exists()
    assert 2 == rag("verify", "no/such/folder").returncode
