import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.core import Pipeline
from pipeline.errors import DocumentError, FingerprintError, SettingsError, StoreError
from pipeline.ingestion.run import Progress
from pipeline.types import Chunk, Document
from tests.fakes import FakeEmbedder, FakeStore


def text(word: str, sentences: int = 20) -> str:
    return " ".join(f"This is sentence {i} about {word}." for i in range(sentences))


DOCUMENTS = [
    Document(id="a", text=text("apples"), title="Fruit", source="shelf", metadata={"lang": "en", "n": [1, 2.5, None]}),
    Document(id="odd \udce9", text="A name that is no UTF-8, and 中文.", metadata={"big": 2**70}),
    *(Document(id=f"d{i}", text=text(f"thing {i}")) for i in range(150)),
]


class Rig:
    """A pipeline over fakes, with the fakes at hand."""

    def __init__(self, *documents: Document, store: FakeStore | None = None, **options: Any) -> None:
        self.store = store or FakeStore()
        self.embedder = FakeEmbedder(name=options.pop("name", "fake-embedder@1"))
        options = {"chunk_tokens": 32, "chunk_overlap": 0} | options
        self.rag = Pipeline(embedder=self.embedder, store=self.store, **options)
        if documents:
            self.rag.ingest(documents)
            self.embedder.embedded.clear()

    def chunks(self) -> dict[str, Chunk]:
        return {id_: chunk for id_, (chunk, _) in self.store.points.items()}


@pytest.mark.parametrize("name", ["all.jsonl", "all.jsonl.gz"])
@pytest.mark.parametrize("vectors", [True, False], ids=["with vectors", "without"])
def test_what_is_exported_comes_back(tmp_path: Path, name: str, vectors: bool) -> None:
    """Every chunk, with the same vector; with vectors in the file nothing is embedded."""
    one, other = Rig(*DOCUMENTS), Rig()
    report = one.rag.export_to(tmp_path / name, vectors=vectors)
    assert (len(DOCUMENTS), len(one.store.points), []) == (report.documents, report.chunks, report.warnings)
    done = other.rag.import_from(tmp_path / name)
    assert one.chunks() == other.chunks()
    for id_, (_, vector) in one.store.points.items():
        np.testing.assert_array_equal(vector, other.store.points[id_][1])
    assert (len(DOCUMENTS), 0, not vectors) == (done.written, done.unchanged, done.embedded)
    assert (0 if vectors else len(one.store.points)) == len(other.embedder.embedded)
    assert other.rag.verify(DOCUMENTS).clean
    assert [tmp_path / name] == list(tmp_path.iterdir())


def test_the_file_is_json_lines_in_the_order_of_the_texts(tmp_path: Path) -> None:
    """A header, a line for each chunk, and how many there were."""
    rig = Rig(*DOCUMENTS[:1])
    rig.rag.export_to(tmp_path / "f")
    head, *lines, end = [json.loads(line) for line in (tmp_path / "f").read_text().splitlines()]
    assert {"two_stage_rag": 1, "fingerprint": rig.rag.fingerprint.to_dict(), "vectors": False} == head
    assert {"chunks": len(lines)} == end
    assert list(range(lines[0]["count"])) == [line["index"] for line in lines]
    assert DOCUMENTS[0].text == " ".join(line["text"] for line in lines)


def test_a_second_import_writes_nothing_and_other_documents_stay(tmp_path: Path) -> None:
    """Only other versions of the documents in the file go."""
    Rig(*DOCUMENTS).rag.export_to(tmp_path / "f", vectors=True)
    other = Rig(replace(DOCUMENTS[0], text=text("pears")), Document(id="mine", text="stays"))
    old = sum(chunk.document_id == "a" for chunk in other.chunks().values())
    first, second = (other.rag.import_from(tmp_path / "f") for _ in range(2))
    assert (len(DOCUMENTS), 0, old) == (first.written, first.unchanged, first.chunks_deleted)
    assert (0, len(DOCUMENTS), 0, 0) == (second.written, second.unchanged, second.chunks_written, second.chunks_deleted)
    assert "mine" in {chunk.document_id for chunk in other.chunks().values()}
    assert other.rag.verify(DOCUMENTS).clean


def test_an_import_that_failed_goes_on_where_it_was(tmp_path: Path) -> None:
    """What is complete is not embedded again."""

    class Failing(FakeStore):
        writes = 0

        def upsert(self, chunks: Any, vectors: Any) -> None:
            self.writes += 1
            if self.writes == 2:
                raise StoreError("disk full")
            super().upsert(chunks, vectors)

    whole = Rig(*DOCUMENTS)
    whole.rag.export_to(tmp_path / "f")
    other = Rig(store=Failing())
    with pytest.raises(StoreError, match="disk full"):
        other.rag.import_from(tmp_path / "f")
    other.embedder.embedded.clear()
    there = len(other.store.points)
    assert there > 100
    report = other.rag.import_from(tmp_path / "f")
    assert whole.chunks() == other.chunks()
    assert report.unchanged > 30
    assert len(other.embedder.embedded) <= len(whole.store.points) - there + 20


def test_an_import_that_was_cut_off_at_its_end_is_brought_to_its_end(tmp_path: Path) -> None:
    """Then nothing is left to write, but the index is still to be built."""

    class CutOff(FakeStore):
        optimized = 0

        def optimize(self, progress: Any = None) -> None:
            self.optimized += 1
            if self.optimized == 1:
                raise KeyboardInterrupt

    Rig(*DOCUMENTS[:3]).rag.export_to(tmp_path / "f")
    store = CutOff()
    with pytest.raises(KeyboardInterrupt):
        Rig(store=store).rag.import_from(tmp_path / "f")
    assert 3 == Rig(store=store).rag.import_from(tmp_path / "f").unchanged
    assert 2 == store.optimized


def test_vectors_of_another_model_are_made_anew_and_that_is_said(tmp_path: Path) -> None:
    """So a file is also a way to another model."""
    Rig(*DOCUMENTS).rag.export_to(tmp_path / "f", vectors=True)
    other = Rig(name="other@2")
    report = other.rag.import_from(tmp_path / "f")
    assert (True, len(other.store.points)) == (report.embedded, len(other.embedder.embedded))
    assert "are of fake-embedder@1: the texts are embedded again with other@2" in report.warnings[0]
    assert other.rag.verify(DOCUMENTS).clean


def test_texts_that_were_cut_in_another_way_are_refused(tmp_path: Path) -> None:
    """And so is a collection that was made in another way."""
    Rig(*DOCUMENTS[:3]).rag.export_to(tmp_path / "f")
    other = Rig(chunk_tokens=64)
    with pytest.raises(FingerprintError, match=r"chunk_tokens: 32, asked for 64"):
        other.rag.import_from(tmp_path / "f")
    assert {} == other.store.points
    made = Rig(DOCUMENTS[2], name="other@2")
    with pytest.raises(FingerprintError, match="stored 'other@2'"):
        Rig(store=made.store).rag.import_from(tmp_path / "f")


def test_of_two_versions_the_one_that_answers_is_exported(tmp_path: Path) -> None:
    """And what is not whole is said, exported, and does not replace what is."""
    rig = Rig(*DOCUMENTS[2:4])
    older = Rig(replace(DOCUMENTS[2], text=text("older")))
    rig.store.points.update(list(older.store.points.items())[:2])
    rig.store.delete_chunks([next(id_ for id_, chunk in rig.chunks().items() if chunk.document_id == "d1")])
    report = rig.rag.export_to(tmp_path / "f")
    assert ["d1"] == [warning.split(":")[0] for warning in report.warnings]
    whole = Rig(replace(DOCUMENTS[3], text=text("whole")))
    whole.rag.import_from(tmp_path / "f")
    assert {"d0", "d1"} == {version.document_id for version in whole.rag.documents()}
    assert {True} == {version.complete for version in whole.rag.documents()}


def test_a_document_that_changes_meanwhile_is_exported_as_it_is_then(tmp_path: Path) -> None:
    """One that never holds still is named, and what is removed is not missed."""

    class Changing(FakeStore):
        """Documents change whenever their chunks are read."""

        busy: dict[str, int]

        def chunks(self, document_ids: Sequence[str] | None = None) -> Iterator[Chunk]:
            for id_ in set(document_ids or ()) & self.busy.keys():
                if self.busy[id_]:
                    self.busy[id_] -= 1
                    self.delete_documents([id_])
                    if id_ != "gone":
                        self.points.update(Rig(Document(id=id_, text=text(f"{id_} {self.busy[id_]}"))).store.points)
            return super().chunks(document_ids)

    store = Changing()
    store.busy = {}
    rig = Rig(*(Document(id=id_, text=text(id_)) for id_ in ("a", "gone", "once", "restless")), store=store)
    store.busy = {"gone": 1, "once": 1, "restless": 1000}
    report = rig.rag.export_to(tmp_path / "f")
    assert ["restless: left out, as it was changed again and again meanwhile"] == report.warnings
    assert 2 == report.documents
    other = Rig()
    assert 2 == other.rag.import_from(tmp_path / "f").written
    assert {"a", "once"} == {chunk.document_id for chunk in other.chunks().values()}
    assert "once 0" in next(chunk.text for chunk in other.chunks().values() if chunk.document_id == "once")


def test_a_document_is_imported_as_a_whole(tmp_path: Path) -> None:
    """A query must not meet one of which a part is written."""
    Rig(*DOCUMENTS).rag.export_to(tmp_path / "f")

    class Watched(FakeStore):
        def upsert(self, chunks: Sequence[Chunk], vectors: NDArray[np.float32]) -> None:
            super().upsert(chunks, vectors)
            assert all(version.complete for version in self.versions())
            self.writes = getattr(self, "writes", 0) + 1

    store = Watched()
    assert len(DOCUMENTS) == Rig(store=store).rag.import_from(tmp_path / "f").written
    assert store.writes > 1


def test_copies_meet_what_is_there(tmp_path: Path) -> None:
    """A path has one content, and a content one document, whatever both collections called it."""
    folder = tmp_path / "docs"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text("Equal texts.")
    one = Rig()
    one.rag.ingest(folder)
    one.rag.export_to(tmp_path / "f")
    (folder / "b.txt").write_text("Newer text of b alone.")
    other = Rig()
    other.rag.ingest([folder / "b.txt", folder / "c.txt"])
    other.rag.import_from(tmp_path / "f")
    assert other.rag.verify().clean
    held = sorted(sorted(Path(path).name for path in version.sources) for version in other.rag.documents())
    assert [["a.txt", "c.txt"], ["b.txt"]] == held
    found = other.rag.get(str(folder / "b.txt"))
    assert found is not None
    assert "Newer text of b alone." == found.chunks[0].text


@pytest.mark.parametrize("here", ["a.txt", "c.txt"])
def test_a_second_import_of_what_is_there_under_another_name_writes_nothing(tmp_path: Path, here: str) -> None:
    """Whichever of the names the document has then."""
    for name in (here, "b.txt"):
        (tmp_path / name).write_text(text("pumps"))
    one, other = Rig(), Rig()
    one.rag.ingest(tmp_path / "b.txt")
    one.rag.export_to(tmp_path / "f")
    other.rag.ingest(tmp_path / here)
    assert 1 == other.rag.import_from(tmp_path / "f").written
    before = other.chunks()
    again = other.rag.import_from(tmp_path / "f")
    assert (0, 1, 0, 0) == (again.written, again.unchanged, again.chunks_written, again.chunks_deleted)
    assert before == other.chunks()
    (version,) = other.rag.documents()
    assert {str(tmp_path / here), str(tmp_path / "b.txt")} == {*version.sources}


def test_equal_documents_that_are_no_files_are_all_kept(tmp_path: Path) -> None:
    """However often they are imported; also beside one whose id is their common source."""
    documents = [Document(id=id_, text=text("pumps"), source="manual") for id_ in ("one", "manual", "two")]
    one, other = Rig(*documents), Rig()
    one.rag.export_to(tmp_path / "f")
    for _ in range(2):
        other.rag.import_from(tmp_path / "f")
        assert one.chunks() == other.chunks()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_imported_as_far_as_it_goes(tmp_path: Path, packed: bool, share: float) -> None:
    """It is said, and no half of a document is written."""
    name = "f.gz" if packed else "f"
    whole = Rig(*DOCUMENTS)
    whole.rag.export_to(tmp_path / name, vectors=True)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    other = Rig()
    with pytest.raises(DocumentError, match="is imported"):
        other.rag.import_from(tmp_path / name)
    assert other.chunks().items() <= whole.chunks().items()
    assert all(version.complete for version in other.rag.documents())
    assert len(list(other.rag.documents())) > 100 * share


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda line: line | {"index": "0"}, "line 2.*index is not of type int"),
        (lambda line: line | {"index": True, "count": 2}, "line 2.*index is not of type int"),
        (lambda line: line | {"count": True}, "line 2.*count is not of type int"),
        (lambda line: line | {"index": -1}, "line 2.*no chunk -1 of 1"),
        (lambda line: line | {"index": 1}, "line 2.*no chunk 1 of 1"),
        (lambda line: line | {"count": 0}, "line 2.*no chunk 0 of 0"),
        (lambda line: {key: value for key, value in line.items() if key != "text"}, "line 2.*text"),
        (lambda line: line | {"vector": "AAAA"}, "no vector of 64 numbers|line 2"),
        (lambda line: [line], "line 2"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, change: Any, said: str) -> None:
    """With its number."""
    Rig(DOCUMENTS[1]).rag.export_to(tmp_path / "f", vectors=True)
    head, line, end = (tmp_path / "f").read_text(encoding="utf-8").splitlines()
    (tmp_path / "f").write_text("\n".join([head, json.dumps(change(json.loads(line))), end]))
    other = Rig()
    with pytest.raises(DocumentError, match=said):
        other.rag.import_from(tmp_path / "f")
    assert {} == other.store.points


def test_lines_that_are_missing_in_the_middle_are_noticed(tmp_path: Path) -> None:
    """By their number at the end."""
    Rig(*DOCUMENTS[:3]).rag.export_to(tmp_path / "f")
    lines = (tmp_path / "f").read_bytes().splitlines(keepends=True)
    (tmp_path / "f").write_bytes(b"".join(lines[:3] + lines[4:]))
    with pytest.raises(DocumentError, match="chunks were written"):
        Rig().rag.import_from(tmp_path / "f")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"id": "a", "text": "b"}\n', b"\x1f\x8b broken", b'{"two_stage_rag": 9}']
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    """Before anything is written."""
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(SettingsError, match="rag export"):
        Rig().rag.import_from(tmp_path / "f")


def test_a_newer_format_and_a_missing_file_say_so(tmp_path: Path) -> None:
    """What to do is in the message."""
    Rig(DOCUMENTS[0]).rag.export_to(tmp_path / "f.gz")
    content = gzip.decompress((tmp_path / "f.gz").read_bytes())
    (tmp_path / "f").write_bytes(content.replace(b'"two_stage_rag": 1', b'"two_stage_rag": 2', 1))
    with pytest.raises(SettingsError, match="format 2"):
        Rig().rag.import_from(tmp_path / "f")
    with pytest.raises(SettingsError, match="No such file"):
        Rig().rag.import_from(tmp_path / "nowhere")


def test_an_export_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    """And nothing beside it."""

    class Failing(FakeStore):
        def chunks(self, document_ids: Any = None) -> Any:
            raise StoreError("read error")

    rig = Rig(DOCUMENTS[0])
    rig.rag.export_to(tmp_path / "f")
    before = (tmp_path / "f").read_bytes()
    failing = Failing()
    failing.points, failing.made_with = rig.store.points, rig.store.made_with
    with pytest.raises(StoreError, match="read error"):
        Rig(store=failing).rag.export_to(tmp_path / "f")
    assert ([tmp_path / "f"], before) == (list(tmp_path.iterdir()), (tmp_path / "f").read_bytes())
    with pytest.raises(SettingsError, match="nothing to export"):
        Rig().rag.export_to(tmp_path / "g")
    with pytest.raises(SettingsError, match="cannot write"):
        rig.rag.export_to(tmp_path / "no" / "folder")


def test_progress_and_reports(tmp_path: Path) -> None:
    """What ``--json`` prints, and what a bar is told."""
    steps: list[Progress] = []
    rig = Rig(*DOCUMENTS[:3])
    out = rig.rag.export_to(tmp_path / "f", progress=steps.append).to_dict()
    back = Rig().rag.import_from(tmp_path / "f", progress=steps.append).to_dict()
    assert {"file", "documents", "chunks", "vectors", "warnings", "seconds"} == set(out)
    assert {"file", "documents", "chunks", "embedded", "warnings", "seconds"} == set(back)
    assert {"written": 3, "unchanged": 0} == back["documents"] == json.loads(json.dumps(back))["documents"]
    assert {out["chunks"]} == {step.chunks for step in steps if step.chunks}
