import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.core import Pipeline
from pipeline.ingestion.ledger import Ledger
from pipeline.ingestion.run import Progress
from pipeline.reports import VerifyReport
from pipeline.types import Chunk, Document, DocumentVersion, LedgerEntry
from tests.fakes import FakeEmbedder, FakeStore


class Rig:
    """A pipeline over fakes, with tools to damage what it stored."""

    def __init__(self) -> None:
        self.store = FakeStore()
        self.rag = Pipeline(embedder=FakeEmbedder(), store=self.store, chunk_tokens=32, chunk_overlap=0)

    def chunks(self, document_id: str) -> list[Chunk]:
        found = [chunk for chunk, _ in self.store.points.values() if chunk.document_id == document_id]
        return sorted(found, key=lambda chunk: (chunk.content_hash, chunk.index))

    def lose(self, document_id: str, index: int = 0) -> None:
        """One chunk of a document is gone."""
        self.store.delete_chunks([chunk.id for chunk in self.chunks(document_id) if chunk.index == index])

    def keep_beside(self, old: Document, chunks: int | None = None) -> None:
        """An older version of a document is still there, or some chunks of it, as a cut-off ingest leaves it."""
        other = Rig()
        other.rag.ingest([old])
        self.store.points.update(list(other.store.points.items())[:chunks])


def text(word: str, sentences: int = 20) -> str:
    return " ".join(f"This is sentence {i} about {word}." for i in range(sentences))


def kinds(report: VerifyReport) -> list[tuple[str, str]]:
    return [(problem.kind, problem.document_id) for problem in report.problems]


def repaired(report: VerifyReport) -> list[tuple[str, str]]:
    return [(problem.kind, problem.document_id) for problem in report.repaired]


OLD, NEW = Document(id="a", text=text("pears")), Document(id="a", text=text("apples"))
OTHER = Document(id="b", text=text("plums"))


def test_a_collection_as_ingest_leaves_it_is_clean() -> None:
    """And so is one that does not exist, which the report says."""
    rig = Rig()
    report = rig.rag.verify()
    assert (True, False, 0) == (report.clean, report.exists, report.chunks)
    steps: list[Progress] = []
    assert not rig.rag.verify(repair=True).exists
    assert not rig.rag.verify(progress=steps.append).exists
    assert not any(step.message for step in steps)  # there is no ledger to be said to be read
    assert [("new", "a")] == kinds(rig.rag.verify([OLD]))
    rig.rag.ingest([OLD, OTHER])
    report = rig.rag.verify([OLD, OTHER])
    assert (True, True, 2, len(rig.store.points)) == (report.clean, report.exists, report.documents, report.chunks)


def test_a_lost_chunk_is_found_and_written_again_where_the_document_is_given() -> None:
    """Without it, it stays lost, and the report goes on saying so."""
    rig = Rig()
    rig.rag.ingest([OLD, OTHER])
    whole = dict(rig.store.points)
    rig.lose("a", 1)
    assert [("missing", "a")] == kinds(rig.rag.verify())
    assert [("missing", "a")] == kinds(rig.rag.verify(repair=True))
    assert len(whole) - 1 == len(rig.store.points)
    report = rig.rag.verify([OLD, OTHER], repair=True)
    assert ([], [("missing", "a")]) == (kinds(report), repaired(report))
    assert set(whole) == set(rig.store.points)


def test_a_version_that_is_being_written_is_no_left_over() -> None:
    """It has more chunks than a moment ago. An ingest that was cut off has not, and is tidied up after."""
    rig = Rig()
    rig.rag.ingest([OLD])
    other = Rig()
    other.rag.ingest([NEW])
    coming = list(other.store.points.items())
    rig.store.points.update(coming[:2])
    versions = rig.store.versions

    def growing(document_ids: Sequence[str] | None = None) -> Iterator[DocumentVersion]:
        rig.store.points.update(coming[:3])
        return versions(document_ids)

    rig.store.versions = growing  # type: ignore[method-assign]
    rig.rag.verify(repair=True)
    assert {id_ for id_, _ in coming[:3]} < set(rig.store.points)
    rig.store.versions = versions  # type: ignore[method-assign]
    assert rig.rag.verify(repair=True).clean
    assert {id_ for id_, _ in coming}.isdisjoint(rig.store.points)


def test_a_lost_chunk_is_written_again_from_the_file_it_came_from(tmp_path: Path) -> None:
    """The ledger knows the path, or which JSONL file has the line."""
    rig = Rig()
    (tmp_path / "a.txt").write_text(text("files"))
    lines = [json.dumps({"id": f"d{i}", "text": text(f"line {i}")}) for i in range(3)]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    rig.rag.ingest(tmp_path)
    whole = set(rig.store.points)
    path = (tmp_path / "a.txt").resolve().as_posix()
    rig.lose(path)
    rig.lose("d1")
    report = rig.rag.verify(repair=True)
    assert ([], {("missing", path), ("missing", "d1")}) == (kinds(report), set(repaired(report)))
    assert whole == set(rig.store.points)


def test_a_document_whose_source_is_a_word_is_not_looked_for_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of that name in the working directory is none of its business."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").write_text(text("something else"))
    rig = Rig()
    rig.rag.ingest([replace(OLD, source="notes")])
    rig.lose("a")
    assert [("missing", "a")] == kinds(rig.rag.verify(repair=True))


def test_an_unfinished_version_beside_the_complete_one_goes() -> None:
    """A cut-off ingest of a newer version: the older one answers, and the crumbs of the newer one are removed."""
    rig = Rig()
    rig.rag.ingest([OLD])
    whole = dict(rig.store.points)
    rig.keep_beside(NEW, chunks=2)
    assert [("orphaned", "a")] == kinds(rig.rag.verify())
    assert len(whole) + 2 == len(rig.store.points)
    assert [("orphaned", "a")] == repaired(rig.rag.verify(repair=True))
    assert set(whole) == set(rig.store.points)


def test_only_the_source_decides_between_two_complete_versions() -> None:
    """Which is newer cannot be told from the chunks: without the source both stay, with it the right one does."""
    rig = Rig()
    rig.rag.ingest([NEW])
    whole = dict(rig.store.points)
    rig.keep_beside(OLD)
    both = len(rig.store.points)
    report = rig.rag.verify(repair=True)
    assert ([("stale", "a")], both) == (kinds(report), len(rig.store.points))
    assert "only the source can tell" in report.problems[0].detail
    assert "an older version" in rig.rag.verify([NEW]).problems[0].detail
    assert [("stale", "a")] == repaired(rig.rag.verify([NEW], repair=True))
    assert set(whole) == set(rig.store.points)


def test_of_only_incomplete_versions_none_is_removed_before_one_is_complete() -> None:
    """Half of a document is better than nothing of it."""
    rig = Rig()
    rig.rag.ingest([OLD])
    rig.lose("a")
    rig.keep_beside(NEW, chunks=2)
    left = set(rig.store.points)
    assert [("missing", "a")] == kinds(rig.rag.verify(repair=True))
    assert left == set(rig.store.points)
    assert [("missing", "a")] == repaired(rig.rag.verify([NEW], repair=True))
    assert {NEW.content_hash()} == {chunk.content_hash for chunk in rig.chunks("a")}


def test_a_chunk_that_is_stored_twice_is_found_and_one_of_the_two_removed() -> None:
    """That one which is stored under another id than its own; a lone one of this kind may stay."""
    rig = Rig()
    rig.rag.ingest([OLD, OTHER])
    whole = dict(rig.store.points)
    first, second = rig.chunks("a")[:2]
    rig.store.points["somewhere else"] = whole[first.id]
    rig.store.points["moved"] = rig.store.points.pop(second.id)
    assert [("duplicate", "a")] == kinds(rig.rag.verify())
    assert [("duplicate", "a")] == repaired(rig.rag.verify(repair=True))
    assert set(whole) - {second.id} | {"moved"} == set(rig.store.points)


def test_a_doubled_chunk_does_not_hide_a_missing_one() -> None:
    """As many chunks as there should be are not all that should be there."""
    entries = [LedgerEntry(name, "a", "h", index=0, count=2, source="s") for name in ("x", "y")]
    ledger = Ledger(entries)
    assert (2, ["y"], [1]) == (ledger.chunks, list(ledger.duplicates), [v.present for v in ledger.documents["a"]])


def test_points_of_others_are_named_and_left_alone() -> None:
    """This program deletes only what it wrote."""
    rig = Rig()
    rig.rag.ingest([OLD])

    class Shared(FakeStore):
        def ledger(self) -> Iterator[LedgerEntry]:
            yield LedgerEntry("guest", "", "", index=-1, count=0, source="")
            yield from super().ledger()

        def delete_chunks(self, point_ids: object) -> int:
            assert not list(point_ids)  # type: ignore[call-overload]
            return 0

    shared = Shared()
    shared.points, shared.made_with = rig.store.points, rig.store.made_with
    rag = Pipeline(embedder=FakeEmbedder(), store=shared, chunk_tokens=32, chunk_overlap=0)
    assert [("foreign", "guest")] == kinds(rag.verify(repair=True))


def test_another_model_is_a_problem_and_nothing_is_written_with_it() -> None:
    """Vectors of two models must not be mixed, by a repair neither."""
    rig = Rig()
    rig.rag.ingest([OLD])
    rig.lose("a")
    left = set(rig.store.points)
    other = Pipeline(embedder=FakeEmbedder(name="other@2"), store=rig.store, chunk_tokens=32, chunk_overlap=0)
    report = other.verify([OLD], repair=True)
    assert [("fingerprint", ""), ("missing", "a")] == kinds(report)
    assert "stored 'fake-embedder@1', asked for 'other@2'" in report.problems[0].detail
    assert left == set(rig.store.points)


def test_what_differs_from_the_sources_is_told_and_left_to_ingest(tmp_path: Path) -> None:
    """Changed, new, gone, emptied and unreadable files of the given folder; what lies elsewhere is not looked at."""
    docs, elsewhere = tmp_path / "docs", tmp_path / "elsewhere"
    for place in (docs, elsewhere):
        place.mkdir()
        for name in ("same", "changed", "gone", "empty", "broken"):
            (place / f"{name}.txt").write_text(f"{name} as it was")
    rig = Rig()
    rig.rag.ingest([docs, elsewhere])
    whole = dict(rig.store.points)
    (elsewhere / "gone.txt").unlink()
    (docs / "gone.txt").unlink()
    (docs / "changed.txt").write_text("not as it was")
    (docs / "new.txt").write_text("new")
    (docs / "empty.txt").write_text("")
    (docs / "broken.txt").write_bytes(b"%PDF-1.4\nnothing more")
    report = rig.rag.verify(docs, repair=True)
    names = [(problem.kind, Path(problem.source).name) for problem in report.problems]
    wanted = [
        ("unreadable", "broken.txt"),
        ("changed", "changed.txt"),
        ("new", "new.txt"),
        ("gone", "empty.txt"),
        ("gone", "gone.txt"),
    ]
    assert (wanted, False, []) == (names, report.clean, report.repaired)
    assert whole == rig.store.points
    rig.rag.ingest(docs, prune=True, max_delete=1)
    (docs / "broken.txt").unlink()
    rig.rag.ingest(docs, prune=True, max_delete=1)
    assert rig.rag.verify(docs).clean


def test_the_report_as_json_and_its_progress() -> None:
    """What ``rag verify --json`` prints."""
    rig = Rig()
    rig.rag.ingest([OLD])
    rig.lose("a")
    steps: list[Progress] = []
    value = rig.rag.verify(progress=steps.append).to_dict()
    count = rig.chunks("a")[0].count
    detail = f"{count - 1} of {count} chunks are there: ingest it again"
    assert {
        "clean": False,
        "exists": True,
        "documents": 1,
        "chunks": count - 1,
        "problems": [{"kind": "missing", "document_id": "a", "source": "a", "detail": detail}],
        "repaired": [],
        "seconds": value["seconds"],
    } == json.loads(json.dumps(value))
    assert "reading the ledger" == steps[0].message
