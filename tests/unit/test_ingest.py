import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from enum import Enum, StrEnum, auto
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import deadline
from pipeline.core import Pipeline
from pipeline.errors import DocumentError, EmbedderError, FingerprintError, SettingsError, StoreError
from pipeline.ingestion import reading
from pipeline.ingestion.changes import plan_prune
from pipeline.ingestion.run import Progress
from pipeline.ingestion.stages import Stopwatch, read_ahead, write_behind
from pipeline.reports import IngestReport
from pipeline.types import Chunk, Document, DocumentVersion, Fingerprint
from tests.fakes import FakeEmbedder, FakeStore


class Rig:
    """A pipeline over fakes, with the fakes at hand."""

    def __init__(self, store: FakeStore | None = None) -> None:
        self.store = store or FakeStore()
        self.embedder = FakeEmbedder()
        self.rag = Pipeline(embedder=self.embedder, store=self.store, chunk_tokens=32, chunk_overlap=0)

    def ids(self) -> set[str]:
        return {chunk.document_id for chunk, _ in self.store.points.values()}


def counts(report: IngestReport) -> tuple[int, int, int, int, int]:
    return report.new, report.changed, report.unchanged, report.deleted, len(report.failures)


def text(word: str, sentences: int = 20) -> str:
    return " ".join(f"This is sentence {i} about {word}." for i in range(sentences))


def test_a_second_ingest_writes_and_embeds_nothing() -> None:
    """Unchanged documents cost a lookup."""
    rig = Rig()
    documents = [Document(id=name, text=text(name)) for name in "abc"]
    first = rig.rag.ingest(documents)
    embedded = len(rig.embedder.embedded)
    second = rig.rag.ingest(documents)
    assert ((3, 0, 0, 0, 0), (0, 0, 3, 0, 0)) == (counts(first), counts(second))
    assert (0, 0, embedded) == (second.chunks_written, second.chunks_deleted, len(rig.embedder.embedded))


def test_a_changed_document_rewrites_its_own_chunks_alone() -> None:
    """The shorter new version leaves no orphans, and the neighbour stays untouched."""
    rig = Rig()
    rig.rag.ingest([Document(id="a", text=text("apples")), Document(id="b", text=text("pears"))])
    before = {id_: chunk for id_, (chunk, _) in rig.store.points.items() if chunk.document_id == "b"}
    old_chunks = len(rig.store.points) - len(before)
    report = rig.rag.ingest([Document(id="a", text="Short now."), Document(id="b", text=text("pears"))])
    assert (0, 1, 1, 0, 0) == counts(report)
    assert (1, old_chunks) == (report.chunks_written, report.chunks_deleted)
    assert before == {id_: chunk for id_, (chunk, _) in rig.store.points.items() if chunk.document_id == "b"}
    assert ["Short now."] == [chunk.text for chunk, _ in rig.store.points.values() if chunk.document_id == "a"]


def test_changed_metadata_is_a_change() -> None:
    """A filter must not answer from yesterday's metadata."""
    rig = Rig()
    rig.rag.ingest([Document(id="a", text="x", metadata={"lang": "en"})])
    assert 1 == rig.rag.ingest([Document(id="a", text="x", metadata={"lang": "zh"})]).changed


def test_new_chunks_are_all_written_before_old_ones_go() -> None:
    """A write that fails half-way leaves the old version complete; the rerun ends as an undisturbed run."""

    class Failing(FakeStore):
        fail = False

        def upsert(self, chunks: Sequence[Chunk], vectors: NDArray[np.float32]) -> None:
            if self.fail:
                super().upsert(chunks[:2], vectors[:2])
                raise StoreError("disk full")
            super().upsert(chunks, vectors)

    store = Failing()
    rig = Rig(store)
    old, new = Document(id="a", text=text("apples")), Document(id="a", text=text("pears"))
    rig.rag.ingest([old])
    complete = set(store.points)
    store.fail = True
    with pytest.raises(StoreError, match="disk full"):
        rig.rag.ingest([new])
    assert complete < set(store.points)
    store.fail = False
    report = rig.rag.ingest([new])
    undisturbed = Rig()
    undisturbed.rag.ingest([new])
    assert set(undisturbed.store.points) == set(store.points)
    assert (1, len(complete)) == (report.changed, report.chunks_deleted)


def test_a_cut_off_first_write_is_completed_by_the_rerun() -> None:
    """Some chunks of a new document are not the document."""
    rig, whole = Rig(), Rig()
    document = Document(id="a", text=text("apples"))
    whole.rag.ingest([document])
    some = dict(list(whole.store.points.items())[:2])
    rig.store.points.update(some)
    rig.store.made_with = whole.store.made_with
    rig.rag.ingest([document])
    assert set(whole.store.points) == set(rig.store.points)


def test_a_document_goes_to_the_store_as_a_whole() -> None:
    """Else a crash, or a query at that moment, meets some of its chunks; only one too long for it comes in parts."""

    class Noting(FakeStore):
        whole_chunks = 600

        def upsert(self, chunks: Sequence[Chunk], vectors: NDArray[np.float32]) -> None:
            for chunk in chunks:
                parts.setdefault(chunk.document_id, {}).setdefault(id(chunks), 0)
                parts[chunk.document_id][id(chunks)] += 1
            held.append(chunks)
            super().upsert(chunks, vectors)

    parts: dict[str, dict[int, int]] = {}
    held: list[Sequence[Chunk]] = []
    sizes = {f"d{i}": size for i, size in enumerate((3, 400, 200, 550, 7, 1_300))}
    rig = Rig(Noting())
    rig.rag.ingest([Document(id=id_, text=". ".join(["word " * 30] * size)) for id_, size in sizes.items()])
    assert [1, 1, 1, 1, 1] == [len(parts[id_]) for id_ in list(sizes)[:5]]
    assert sizes["d5"] == sum(parts["d5"].values())
    assert len(parts["d5"]) > 1


def test_stale_chunks_beside_a_complete_version_are_removed_without_embedding() -> None:
    """A crash between writing and deleting costs the rerun only the deletion."""
    rig, old = Rig(), Rig()
    old.rag.ingest([Document(id="a", text=text("pears"))])
    new = Document(id="a", text=text("apples"))
    rig.rag.ingest([new])
    complete = set(rig.store.points)
    rig.store.points.update(old.store.points)
    embedded = len(rig.embedder.embedded)
    report = rig.rag.ingest([new])
    assert (complete, embedded) == (set(rig.store.points), len(rig.embedder.embedded))
    assert (1, len(old.store.points)) == (report.unchanged, report.chunks_deleted)


def test_a_dry_run_counts_and_writes_nothing() -> None:
    """The plan is printed; neither the store nor the model is touched."""
    rig = Rig()
    report = rig.rag.ingest([Document(id="a", text=text("apples"))], dry_run=True)
    assert (1, True) == (report.new, report.dry_run)
    assert report.chunks_written > 1
    assert ({}, [], None) == (rig.store.points, rig.embedder.embedded, rig.store.made_with)


def test_the_last_of_two_documents_with_one_id_counts(tmp_path: Path) -> None:
    """Said in a warning, stored once."""
    rig = Rig()
    report = rig.rag.ingest([Document(id="a", text="first"), Document(id="a", text="second")])
    assert ["second"] == [chunk.text for chunk, _ in rig.store.points.values()]
    assert "'a' was given more than once" in report.warnings[0]


def test_the_last_of_several_lines_with_one_id_counts(tmp_path: Path) -> None:
    """However far apart they are, and nothing else is ever written; that many are repeated is said in few words."""
    ids = [f"d{i % 600}" for i in range(1_500)]
    lines = [json.dumps({"id": id_, "text": f"line {n}"}) for n, id_ in enumerate(ids)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rig = Rig()
    report = rig.rag.ingest(tmp_path / "a.jsonl")
    last = {id_: f"line {n}" for n, id_ in enumerate(ids)}
    assert last == {chunk.document_id: chunk.text for chunk, _ in rig.store.points.values()}
    assert sorted(last.values()) == sorted(rig.embedder.embedded)
    assert (600, 21, "580 more ids were given more than once") == (
        report.new,
        len(report.warnings),
        report.warnings[-1],
    )
    again = rig.rag.ingest(tmp_path / "a.jsonl")
    assert ((0, 0, 600, 0, 0), 0, 600) == (counts(again), again.chunks_written, len(rig.embedder.embedded))


def test_ids_are_repeated_over_files_and_documents(tmp_path: Path) -> None:
    """The order in which they are given decides; a file that is met twice repeats nothing."""
    place = folder(tmp_path)
    for name in ("a", "b"):
        (place / f"{name}.jsonl").write_text(json.dumps({"id": "x", "text": f"from {name}"}))
    rig = Rig()
    given: list[Document | Path | str] = [
        place,
        Document(id="y", text="first"),
        place / "a.jsonl",
        Document(id="y", text="second"),
    ]
    for _ in range(2):
        report = rig.rag.ingest(given, prune=True)
        assert ["from b", "second"] == sorted(chunk.text for chunk, _ in rig.store.points.values())
        assert ["from b", "second"] == sorted(rig.embedder.embedded)
        assert ["'x'", "'y'"] == sorted(warning.split()[2] for warning in report.warnings)


def test_a_generator_of_repeated_ids_ends_with_the_last() -> None:
    """Nothing is known of what is still to come."""
    rig = Rig()
    report = rig.rag.ingest(Document(id="a", text=f"number {i}") for i in range(600))
    assert ["number 599"] == [chunk.text for chunk, _ in rig.store.points.values()]
    assert (1, 1) == (report.new, len(report.warnings))


def test_a_line_that_vanishes_while_it_is_read_is_not_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ids are counted before: of a file that is cut in between the last line of an id may never come."""
    file = tmp_path / "a.jsonl"
    lines = [json.dumps({"id": id_, "text": f"text {id_}"}) for id_ in "abba"]
    file.write_text("\n".join(lines[:2]))
    rig = Rig()
    rig.rag.ingest(file)
    file.write_text("\n".join(lines))
    counted = reading._repeated

    def cut(inputs: Iterable[Document | Path]) -> dict[str, int]:
        found = counted(inputs)
        file.write_text("\n".join(lines[:3]))
        return found

    monkeypatch.setattr(reading, "_repeated", cut)
    assert 0 == rig.rag.ingest(file, prune=True, max_delete=1.0).deleted
    assert {"a", "b"} == rig.ids()


def test_files_over_the_limit_are_failures(tmp_path: Path) -> None:
    """``max_file_mb`` is asked of files that are read whole; lines of JSONL are read one by one."""
    store = FakeStore()
    rag = Pipeline(embedder=FakeEmbedder(), store=store, max_file_mb=0.001)
    place = folder(tmp_path, "small.txt")
    (place / "large.txt").write_text("x" * 2_000)
    (place / "large.jsonl").write_text("\n".join(json.dumps({"id": str(i), "text": "x"}) for i in range(100)))
    report = rag.ingest(place)
    assert (101, ["large.txt"]) == (report.new, [Path(failure.source).name for failure in report.failures])
    assert "more than the limit of 0.001 MB" in report.failures[0].error
    assert ["unreadable"] == [problem.kind for problem in rag.verify(place).problems]


def test_a_document_without_text_is_a_failure_and_the_rest_goes_on() -> None:
    """One bad document does not stop the others."""
    rig = Rig()
    report = rig.rag.ingest([Document(id="empty", text=" \n "), Document(id="b", text="fine")])
    assert (1, ["empty"]) == (report.new, [failure.source for failure in report.failures])
    assert {"b"} == rig.ids()


def folder(tmp_path: Path, *names: str) -> Path:
    place = tmp_path / "docs"
    place.mkdir(exist_ok=True)
    for name in names:
        (place / name).write_text(f"This is the file {name}.")
    return place


def test_prune_removes_what_is_gone_under_the_path_alone(tmp_path: Path) -> None:
    """Documents from elsewhere are none of its business."""
    rig = Rig()
    place = folder(tmp_path, *(f"{i}.txt" for i in range(10)))
    rig.rag.ingest([place, Document(id="mine", text="kept", source="elsewhere")])
    (place / "3.txt").unlink()
    assert 0 == rig.rag.ingest(place).deleted
    report = rig.rag.ingest(place, prune=True)
    assert (0, 0, 9, 1, 0) == counts(report)
    assert "mine" in rig.ids()
    assert str((place / "3.txt").resolve()) not in rig.ids()


def test_prune_refuses_to_remove_too_much(tmp_path: Path) -> None:
    """An unmounted folder looks like one whose files were deleted."""
    rig = Rig()
    place = folder(tmp_path, *(f"{i}.txt" for i in range(10)))
    rig.rag.ingest(place)
    for i in range(10):
        (place / f"{i}.txt").unlink()
    report = rig.rag.ingest(place, prune=True)
    assert (0, 10) == (report.deleted, len(rig.ids()))
    assert "10 of 10" in report.failures[0].error
    assert 10 == rig.rag.ingest(place, prune=True, max_delete=1.0).deleted
    assert set() == rig.ids()


def test_a_prune_that_was_refused_stays_so(tmp_path: Path) -> None:
    """Another folder in the place of the first: what it brought is there before the next run, and was no reason."""
    rig = Rig()
    place = folder(tmp_path, *(f"{i}.txt" for i in range(6)))
    rig.rag.ingest(place)
    place.rename(tmp_path / "away")
    folder(tmp_path, *(f"other {i}.txt" for i in range(40)))
    for said in ("6 of 6", "as was refused before"):
        report = rig.rag.ingest(place, prune=True)
        assert (0, 46) == (report.deleted, len(rig.ids()))
        assert said in report.failures[0].error
    assert 6 == rig.rag.ingest(place, prune=True, max_delete=1.0).deleted
    (place / "other 1.txt").unlink()
    assert 1 == rig.rag.ingest(place, prune=True).deleted


def test_an_old_version_stays_where_the_new_one_is_not_all_there() -> None:
    """Somebody, a repair say, may have removed a part of it while it was written."""
    rig = Rig()
    old, new = (" ".join(f"{word}{i}" for i in range(400)) for word in ("pear", "apple"))
    rig.rag.ingest([Document(id="a", text=old)])
    before = set(rig.store.points)
    upsert = rig.store.upsert

    def disturbed(chunks: Sequence[Chunk], vectors: NDArray[np.float32]) -> None:
        upsert(chunks, vectors)
        rig.store.delete_chunks([chunks[0].id])

    rig.store.upsert = disturbed  # type: ignore[method-assign]
    (failure,) = rig.rag.ingest([Document(id="a", text=new)]).failures
    assert ("a", True) == (failure.source, "removed while it was written" in failure.error)
    assert before < set(rig.store.points)
    rig.store.upsert = upsert  # type: ignore[method-assign]
    assert [] == rig.rag.ingest([Document(id="a", text=new)]).failures
    assert before.isdisjoint(rig.store.points)
    assert rig.rag.verify().clean


def test_what_is_gone_as_a_whole_can_be_pruned(tmp_path: Path) -> None:
    """By its name, with the same guard as an emptied folder; a name that nothing is known of stays an error."""
    rig = Rig()
    place = folder(tmp_path, *(f"{i}.txt" for i in range(10)))
    rig.rag.ingest(place)
    place.rename(tmp_path / "moved")
    with pytest.raises(SettingsError, match="no such file or folder"):
        rig.rag.ingest(place)
    with pytest.raises(SettingsError, match="no such file or folder"):
        rig.rag.ingest(tmp_path / "never", prune=True)
    assert 10 == sum(problem.kind == "gone" for problem in rig.rag.verify([place]).problems)
    report = rig.rag.ingest(place, prune=True)
    assert (0, 10) == (report.deleted, len(rig.ids()))
    assert "10 of 10" in report.failures[0].error
    assert 10 == rig.rag.ingest(place, prune=True, max_delete=1.0, dry_run=True).deleted
    assert 10 == rig.rag.ingest(place, prune=True, max_delete=1.0).deleted
    assert set() == rig.ids()


def test_a_folder_that_was_renamed_is_pruned_with_its_new_name(tmp_path: Path) -> None:
    """Nothing is lost, so nothing is guarded."""
    rig = Rig()
    place, moved = folder(tmp_path, *(f"{i}.txt" for i in range(10))), tmp_path / "moved"
    rig.rag.ingest(place)
    place.rename(moved)
    assert [] == rig.rag.ingest([place, moved], prune=True).failures
    assert {str((moved / f"{i}.txt").resolve()) for i in range(10)} == rig.ids()


def test_prune_keeps_what_the_walk_leaves_out(tmp_path: Path) -> None:
    """A hidden file that was given by its name, and a document from Python that names a file: both are there."""
    rig = Rig()
    place = folder(tmp_path, *(f"{i}.txt" for i in range(10)), ".wiki")
    mine = Document(id="mine", text="of a file", source=str((place / "3.txt").resolve()))
    rig.rag.ingest([place, place / ".wiki", mine])
    assert 0 == rig.rag.ingest(place, prune=True).deleted
    assert [] == rig.rag.verify([place]).problems
    (place / ".wiki").unlink()
    (place / "3.txt").unlink()
    assert ["gone"] * 3 == [problem.kind for problem in rig.rag.verify([place]).problems]
    assert 3 == rig.rag.ingest(place, prune=True, max_delete=0.5).deleted


def test_prune_keeps_what_cannot_be_read_today(tmp_path: Path) -> None:
    """A file that is there but broken is not gone."""
    rig = Rig()
    place = folder(tmp_path, *(f"{i}.txt" for i in range(10)))
    rig.rag.ingest(place)
    (place / "3.txt").write_bytes(b"%PDF-1.4\nnothing more")
    report = rig.rag.ingest(place, prune=True)
    assert (0, 1) == (report.deleted, len(report.failures))
    assert 10 == len(rig.ids())


PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


def test_files_of_a_folder_that_hold_no_text_are_skipped(tmp_path: Path) -> None:
    """Every folder has pictures and empty files. One that is asked for by its name is a failure."""
    place = folder(tmp_path, "a.txt")
    (place / "logo.png").write_bytes(PNG)
    (place / "__init__.py").write_bytes(b"")
    (place / "lines.jsonl").write_bytes(b"\n")
    os.mkfifo(place / "pipe")
    rig = Rig()
    report = rig.rag.ingest(place)
    assert ((1, 0, 0, 0, 0), []) == (counts(report), report.warnings)
    said = {Path(file.source).name: file.error for file in report.skipped}
    assert {
        "logo.png": "PNG image, no text",
        "__init__.py": "empty file",
        "lines.jsonl": "empty file",
        "pipe": "pipe or device, no text",
    } == said
    assert sorted(said) == sorted(Path(file["source"]).name for file in report.to_dict()["skipped"])
    assert [] == rig.rag.verify(place).problems
    for name in said:
        named = rig.rag.ingest([place / "a.txt", place / name])
        assert ([said[name]], []) == ([failure.error for failure in named.failures], named.skipped)
    both = rig.rag.ingest([place, place / "logo.png"])
    assert (["logo.png"], 3) == ([Path(failure.source).name for failure in both.failures], len(both.skipped))


@pytest.mark.parametrize("content", [b"", PNG], ids=["empty", "picture"])
def test_what_is_stored_of_a_file_without_text_goes_with_prune(tmp_path: Path, content: bytes) -> None:
    """Until then it is a failure, as people find what is nowhere any more."""
    rig = Rig()
    place = folder(tmp_path, *(f"{i}.txt" for i in range(10)))
    rig.rag.ingest(place)
    (place / "3.txt").write_bytes(content)
    assert ["gone"] == [problem.kind for problem in rig.rag.verify(place).problems]
    report = rig.rag.ingest(place)
    assert (1, []) == (len(report.failures), report.skipped)
    assert report.failures[0].error.endswith("stays until an ingest with --prune")
    assert 10 == len(rig.ids())
    report = rig.rag.ingest(place, prune=True)
    assert ((1, 0, 1), 9) == ((report.deleted, len(report.failures), len(report.skipped)), len(rig.ids()))
    assert [] == rig.rag.verify(place).problems


@pytest.mark.parametrize(("name", "content"), [("l.jsonl", b""), ("3.txt", bytes(500))], ids=["lines", "NUL bytes"])
def test_what_may_be_damaged_or_half_written_keeps_what_is_stored_of_it(
    tmp_path: Path, name: str, content: bytes
) -> None:
    """With --prune, too: who writes a file of lines empties it first, and a power cut leaves NUL bytes."""
    rig = Rig()
    place = folder(tmp_path, *(f"{i}.txt" for i in range(10)))
    (place / "l.jsonl").write_text('{"id": "line", "text": "text"}')
    rig.rag.ingest(place)
    (place / name).write_bytes(content)
    assert ["unreadable"] == [problem.kind for problem in rig.rag.verify(place).problems]
    report = rig.rag.ingest(place, prune=True)
    assert (0, 11) == (report.deleted, len(rig.ids()))
    assert ["stays while the file is there"] == [failure.error.partition("of it ")[2] for failure in report.failures]
    (place / name).unlink()
    assert 1 == rig.rag.ingest(place, prune=True).deleted


def test_emptied_files_do_not_empty_the_collection(tmp_path: Path) -> None:
    """The guard of prune holds for them, too: a disk may have been full."""
    rig = Rig()
    place = folder(tmp_path, *(f"{i}.txt" for i in range(10)))
    rig.rag.ingest(place)
    for path in place.iterdir():
        path.write_bytes(b"")
    report = rig.rag.ingest(place, prune=True)
    assert "delete 10 of 10" in report.failures[0].error
    assert 10 == len(rig.ids())


def test_ignored_folders_are_read_only_if_they_are_given(tmp_path: Path) -> None:
    """The store's own data beside the documents, whatever its name."""
    place = folder(tmp_path, "a.txt")
    folder(place, "store.json")
    rag = Pipeline(embedder=FakeEmbedder(), store=FakeStore(), chunk_tokens=32, ignored=[place / "docs"])
    assert 1 == rag.ingest(place).new
    assert [] == rag.verify(place).problems
    assert 1 == rag.ingest(iter([place / "docs"])).new
    assert (0, []) == ((report := rag.ingest(place, prune=True)).deleted, report.failures)
    assert [] == rag.verify(place).problems


def test_an_ignored_folder_that_is_given_beside_the_one_it_lies_in_is_read(tmp_path: Path) -> None:
    """In whatever order."""
    place = folder(tmp_path, "a.txt")
    inner = folder(place, "b.txt")
    for order in ([place, inner], [inner, place]):
        rag = Pipeline(embedder=FakeEmbedder(), store=FakeStore(), chunk_tokens=32, ignored=[inner])
        assert 2 == rag.ingest(order).new


def test_prune_removes_lines_that_left_a_jsonl_file(tmp_path: Path) -> None:
    """The documents of a JSONL file have it as their source."""
    rig = Rig()
    file = tmp_path / "all.jsonl"
    lines = [json.dumps({"id": f"d{i}", "text": f"text {i}"}) for i in range(10)]
    file.write_text("\n".join(lines))
    rig.rag.ingest(file)
    file.write_text("\n".join(lines[:9]))
    assert 1 == rig.rag.ingest(file, prune=True).deleted
    assert "d9" not in rig.ids()


def test_prune_without_paths_is_refused() -> None:
    """There is nothing to compare with. Nothing is written, and of an iterator at most what came before its end."""
    for given in (list, iter):
        rig = Rig()
        with pytest.raises(SettingsError, match="prune"):
            rig.rag.ingest(given([Document(id="a", text="x")]), prune=True)
        assert {} == rig.store.points


def test_many_documents_alone_are_not_written_before_prune_is_refused() -> None:
    """A list is looked through beforehand: an ingest of hours does not end in an error."""
    rig = Rig()
    with pytest.raises(SettingsError, match="prune"):
        rig.rag.ingest([Document(id=str(n), text="x") for n in range(700)], prune=True)
    assert ({}, []) == (rig.store.points, rig.embedder.embedded)


def test_a_sibling_with_the_same_beginning_is_not_under_a_root() -> None:
    """/a/docs2 does not lie in /a/docs."""
    versions = [DocumentVersion("x", "h", "/a/docs2/x.md", 1, 1), DocumentVersion("y", "h", "/a/docs/y.md", 1, 1)]
    assert ["y"] == plan_prune(versions, ["/a/docs"], seen=[], unreadable=[]).doomed


def test_a_root_that_lost_all_is_not_hidden_by_the_others() -> None:
    """A small folder that is unmounted next to a large one that is not."""
    large = [DocumentVersion(f"/a/{i}", "h", f"/a/{i}", 1, 1) for i in range(20)]
    small = [DocumentVersion(f"/b/{i}", f"b{i}", f"/b/{i}", 1, 1) for i in range(3)]
    seen = [version.document_id for version in large]
    plan = plan_prune([*large, *small], ["/a", "/b"], seen=seen, unreadable=[])
    assert "delete 3 of 23 documents here, all of /b, more than" in str(plan.refusal(0.2))
    assert plan.refusal(1.0) is None
    two = plan_prune([*large, *small], ["/a", "/b"], [*seen, "/b/0"], [])
    assert two.refusal(0.2) is None
    assert plan_prune([*large, *small], ["/a", "/b"], seen, [], contents={"b0", "b1", "b2"}).refusal(0.2) is None


@pytest.mark.parametrize("dry_run", [True, False])
def test_what_an_ingest_brings_does_not_excuse_what_is_gone(tmp_path: Path, dry_run: bool) -> None:
    """Another disk under the same path: all of the first is gone, however much there is on the second."""
    rig = Rig()
    for disk, count in (("first", 20), ("second", 100)):
        for file in tmp_path.iterdir():
            file.unlink()
        for number in range(count):
            (tmp_path / f"{disk}{number}.txt").write_text(f"text {number} of {disk}")
        report = rig.rag.ingest(tmp_path, prune=True, dry_run=dry_run and disk == "second")
    assert "prune would delete 20 of 20 documents here, more than" in report.failures[0].error
    assert {f"first{number}.txt" for number in range(20)} <= {Path(id_).name for id_ in rig.ids()}


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_file_that_was_renamed_and_changed_may_go(tmp_path: Path, dry_run: bool) -> None:
    """Its folder is not empty, were it the only one there; the dry run tells the same."""
    rig = Rig()
    (tmp_path / "draft.md").write_text("The first words.")
    rig.rag.ingest(tmp_path)
    (tmp_path / "draft.md").rename(tmp_path / "final.md").write_text("The last words.")
    report = rig.rag.ingest(tmp_path, prune=True, dry_run=dry_run)
    assert ([], 1, 1) == (report.failures, report.new, report.deleted)


def test_many_roots_are_pruned_in_time_that_grows_with_them() -> None:
    """As in ``rag ingest *.md --prune``: a look at each root for each document would be 400 million."""
    versions = [DocumentVersion(f"/a/{i}.md", f"h{i}", f"/a/{i}.md", 1, 1) for i in range(20_000)]
    roots = [version.source for version in versions]
    plan = plan_prune(versions, roots, seen=roots[1:], unreadable=[])
    assert (["/a/0.md"], 20_000, ("/a/0.md",)) == (plan.doomed, plan.total, plan.emptied)


def test_one_document_may_go_but_with_a_share_of_0() -> None:
    """Of a few a single one is more than a fifth."""
    versions = [DocumentVersion(f"/a/{i}", f"h{i}", f"/a/{i}", 1, 1) for i in range(3)]
    plan = plan_prune(versions, ["/a"], seen=["/a/0", "/a/1"], unreadable=[])
    assert plan.refusal(0.2) is None
    assert "delete 1 of 3" in str(plan.refusal(0.0))


@pytest.mark.parametrize("levels", [65, 500])
def test_metadata_that_is_nested_too_deeply_is_a_failure(levels: int) -> None:
    """The engine would store it, and then read nothing of the collection any more."""
    metadata: dict[str, object] = {}
    for _ in range(levels):
        metadata = {"deeper": [metadata]} if levels % 2 else {"deeper": metadata}
    rig = Rig()
    report = rig.rag.ingest([Document(id="deep", text="x", metadata=metadata), Document(id="a", text="x")])
    assert ["deep: metadata of more than 64 levels"] == [failure.error for failure in report.failures]
    assert {"a"} == rig.ids()


def test_metadata_of_some_levels_is_stored() -> None:
    """As many as anybody has."""
    metadata: dict[str, object] = {"value": 1}
    for _ in range(20):
        metadata = {"deeper": [metadata]}
    rig = Rig()
    assert (1, 0, 0, 0, 0) == counts(rig.rag.ingest([Document(id="a", text="x", metadata=metadata)]))
    assert [metadata] == [chunk.metadata for chunk, _ in rig.store.points.values()]


def test_another_program_may_make_the_collection_first() -> None:
    """With another model: then nothing is written among its vectors."""

    class Overtaken(FakeStore):
        def ensure_ready(self, fingerprint: Fingerprint) -> None:
            super().ensure_ready(replace(fingerprint, embedder="another@1"))

    rig = Rig(Overtaken())
    with pytest.raises(FingerprintError, match="stored 'another@1', asked for 'fake-embedder@1'"):
        rig.rag.ingest([Document(id="a", text="x")])
    assert {} == rig.store.points


def test_what_lies_in_a_folder_that_cannot_be_read_is_not_gone() -> None:
    """Rights that were lost, or a network drive with a fault, must not delete what is there."""
    versions = [DocumentVersion(name, "h", f"/a/{name}", 1, 1) for name in ("x/1", "x/y/2", "xx/3", "4")]
    assert ["4", "xx/3"] == plan_prune(versions, ["/a"], seen=[], unreadable=["/a/x"]).doomed
    assert [] == plan_prune(versions, ["/a"], seen=[], unreadable=["/a"]).doomed


def test_a_missing_path_is_found_out_before_any_work(tmp_path: Path) -> None:
    """A typo in the last argument does not cost the work on the first."""
    rig = Rig()
    with pytest.raises(SettingsError, match="nowhere"):
        rig.rag.ingest([folder(tmp_path, "a.txt"), tmp_path / "nowhere"])
    assert {} == rig.store.points


def test_an_empty_folder_is_said(tmp_path: Path) -> None:
    """A row of zeros leaves people wondering."""
    assert "no files" in Rig().rag.ingest(folder(tmp_path)).warnings[0]


def test_progress_is_told_files_documents_and_chunks(tmp_path: Path) -> None:
    """The last step tells the whole."""
    rig = Rig()
    steps: list[Progress] = []
    rig.rag.ingest(folder(tmp_path, "a.txt", "b.txt"), progress=steps.append)
    assert (2, 2, 2, 2) == max((step.files_done, step.files_total, step.documents, step.chunks) for step in steps)


@pytest.mark.parametrize("error", [ValueError("full"), KeyboardInterrupt("mine")], ids=repr)
def test_what_progress_raises_comes_out_as_it_is(error: BaseException) -> None:
    """As where a program cancels an ingest: it ends, what is written is whole, and another one goes on from there."""
    rig = Rig()
    items = [Document(id=f"d{i}", text=text(f"word{i}", 5)) for i in range(300)]

    def cancel(step: Progress) -> None:
        if step.chunks:
            raise error

    with pytest.raises(type(error)) as caught:
        rig.rag.ingest(items, progress=cancel)
    assert error is caught.value
    assert 0 < len(rig.ids()) < 300
    assert [] == rig.rag.verify().problems
    report = rig.rag.ingest(items)
    assert 300 == report.new + report.unchanged == len(rig.ids())
    assert report.unchanged


def test_a_generator_is_read_as_it_goes() -> None:
    """A million documents need not exist at once: reading waits for writing."""
    alive, most = 0, 0
    lock = threading.Lock()

    class Counting(FakeStore):
        def upsert(self, chunks: Sequence[Chunk], vectors: NDArray[np.float32]) -> None:
            nonlocal alive
            with lock:
                alive -= len(chunks)
            super().upsert(chunks, vectors)

    def documents() -> Iterator[Document]:
        nonlocal alive, most
        for i in range(9_000):
            with lock:
                alive += 1
                most = max(most, alive)
            yield Document(id=str(i), text=f"text {i}")

    rig = Rig(Counting())
    assert 9_000 == rig.rag.ingest(documents()).new
    assert most < 6_000


def test_the_stages_work_side_by_side() -> None:
    """While a batch is embedded the one before it is written, and the next is read: each waits for the others here."""
    met = threading.Barrier(3, timeout=60)

    class Meeting(FakeEmbedder):
        batches = 0

        def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
            self.batches += 1
            if self.batches == 2:
                met.wait()
            return super().embed_documents(texts)

    class Writing(FakeStore):
        def upsert(self, chunks: Sequence[Chunk], vectors: NDArray[np.float32]) -> None:
            if not self.points:
                met.wait()
            super().upsert(chunks, vectors)

    def documents() -> Iterator[Document]:
        for i in range(2_000):
            if i == 1_100:
                met.wait()
            yield Document(id=str(i), text=f"text {i}")

    rag = Pipeline(embedder=Meeting(), store=Writing())
    report = rag.ingest(documents())
    assert (2_000, 2_000) == (report.new, report.chunks_written)


def test_a_failing_embedder_stops_the_ingest() -> None:
    """What was embedded before is written; no thread stays behind."""

    class Failing(FakeEmbedder):
        def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
            if self.embedded:
                raise EmbedderError("out of memory")
            return super().embed_documents(texts)

    store = FakeStore()
    rag = Pipeline(embedder=Failing(), store=store)
    with pytest.raises(EmbedderError, match="out of memory"):
        rag.ingest(Document(id=str(i), text=f"text {i}") for i in range(10_000))
    assert len(store.points) <= 1_000
    assert [] == [thread for thread in threading.enumerate() if thread.name.startswith("rag-")]


def test_the_profile_counts_work_and_not_waiting() -> None:
    """A stage that waits for another is not busy."""
    watch = Stopwatch()
    with watch.working("a"):
        list(watch.reading(iter(range(3)), "b"))
    assert 0 < watch.seconds["b"] < watch.seconds["a"]
    report = Rig().rag.ingest([Document(id="a", text="text")])
    assert report.profile is not None
    told = report.profile.to_dict()
    assert ["seconds", "reading", "chunking", "embedding", "writing", "indexing", "peak_mb", "embedder_busy"] == list(
        told
    )
    assert 0 < report.profile.embedding < report.profile.seconds
    assert 0 < report.profile.embedder_busy < 1
    assert report.profile.peak_mb is not None
    assert 10 < report.profile.peak_mb < 100_000


def test_read_ahead_raises_the_producers_error_in_its_place() -> None:
    """Nothing before the error is lost, and the error is not."""

    def produce() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    with read_ahead(produce(), 2) as items:
        assert 1 == next(items)
        with pytest.raises(ValueError, match="broken"):
            next(items)


def test_read_ahead_stops_its_thread() -> None:
    """A consumer that gives up leaves no thread behind."""
    with read_ahead(iter(range(1000)), 2) as items:
        next(items)
    assert [] == [thread for thread in threading.enumerate() if thread.name == "rag-read"]


def test_write_behind_raises_the_first_error_and_does_no_more() -> None:
    """What follows a failed write must not be written."""
    done: list[int] = []

    def work(item: int) -> None:
        if item == 2:
            raise StoreError("refused")
        done.append(item)

    def run() -> None:
        with write_behind(work, 10, threading.Event()) as put:
            for item in range(5):
                put(item)

    with pytest.raises(StoreError, match="refused"):
        run()
    assert [0, 1] == done


@pytest.mark.parametrize("at_the_end", [True, False])
def test_stages_that_are_given_up_do_not_go_on_trying(at_the_end: bool) -> None:
    """Ctrl-C beside a server that is away: the stage that waits before its next try, and the one that waits for it."""
    given_up, trying = threading.Event(), threading.Semaphore(0)
    ended: list[BaseException] = []
    # A process that was started in the background may have none.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def write(_: int) -> None:
        trying.release()
        if at_the_end:
            os.kill(os.getpid(), signal.SIGINT)
        try:
            deadline.sleep(600)
        except deadline.GivenUpError as error:
            ended.append(error)
            raise

    def run() -> None:
        with write_behind(write, 1, given_up) as put_on, write_behind(put_on, 1, given_up) as put:
            put(1)
            if not at_the_end:
                assert trying.acquire(timeout=60)
                raise KeyboardInterrupt

    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            run()
    finally:
        signal.signal(signal.SIGINT, before)
    assert 1 == len(ended)
    assert time.monotonic() - start < 300
    assert [] == [thread for thread in threading.enumerate() if thread.name == "rag-write"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"id": ""}, "not empty"),
        ({"id": 5}, "not 5"),
        ({"text": None}, "document x: text is a string, not NoneType"),
        ({"title": 1}, "document x: title is a string"),
        ({"metadata": {1: 2, "a": 3}}, "document x: metadata is a mapping whose keys are strings"),
        ({"metadata": None}, "document x: metadata is a mapping"),
        ({"page_starts": ("a",)}, "document x: page_starts are whole numbers"),
    ],
)
def test_a_document_of_other_types(fields: dict[str, Any], says: str) -> None:
    """Is refused where it is made, by its id: in an ingest of thousands nobody would find it."""
    with pytest.raises(DocumentError, match=says):
        Document(**({"id": "x", "text": "text"} | fields))


def test_chunks_shorter_than_asked_for_are_said() -> None:
    """Where the embedding model does not read as much."""
    for wanted, said in ((100_000, True), (256, False)):
        with Pipeline(embedder=FakeEmbedder(), store=FakeStore(), chunk_tokens=wanted) as rag:
            report = rag.ingest([Document("a", "text")])
            assert said == any(f"tokens at most, not {wanted}" in warning for warning in report.warnings)
            assert said == (rag.chunk_tokens < wanted)


class Together(FakeStore):
    """A store of one of two pipelines that write at the same moment."""

    def __init__(self, name: str, points: dict[str, tuple[Chunk, NDArray[np.float32]]], meeting: threading.Barrier):
        super().__init__()
        self.name, self.points, self.meeting = name, points, meeting
        self.meet = True

    def upsert(self, chunks: Sequence[Chunk], vectors: NDArray[np.float32]) -> None:
        if self.meet:
            self.meeting.wait()  # both have compared
        super().upsert(chunks, vectors)
        if self.meet:
            self.meeting.wait()  # both have written, and neither has removed anything


def at_once(names: Sequence[str], items: Sequence[Any]) -> tuple[list[Rig], list[IngestReport]]:
    """Two pipelines on one collection, whose stores have these names, ingest one of the items each."""
    first = Rig()
    first.rag.ingest([Document(id="a", text="the first")])
    meeting = threading.Barrier(2, timeout=10)
    rigs = [Rig(Together(name, first.store.points, meeting)) for name in names]
    reports: list[IngestReport] = []
    threads = [
        threading.Thread(target=lambda rig=rig, item=item: reports.append(rig.rag.ingest(item)))
        for rig, item in zip(rigs, items, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rig in rigs:
        rig.store.meet = False  # type: ignore[attr-defined]
    return rigs, reports


SECOND_AND_THIRD = [[Document(id="a", text=words)] for words in ("the second", "the third")]


def texts(rig: Rig) -> list[str]:
    return sorted(chunk.text for chunk, _ in rig.store.points.values())


def test_two_programs_that_ingest_a_document_at_once_leave_it_whole() -> None:
    """Each removes what it saw at the beginning, not what the other brought; the next ingest leaves one version."""
    rigs, _ = at_once(["one program's", "another's"], SECOND_AND_THIRD)
    assert ["the second", "the third"] == texts(rigs[0])
    rigs[0].rag.ingest([Document(id="a", text="the third")])
    assert ["the third"] == texts(rigs[0])


def test_two_threads_that_ingest_a_document_at_once_leave_one_version() -> None:
    """Of one program the one who comes last removes what the other has brought."""
    rigs, reports = at_once(["the same", "the same"], SECOND_AND_THIRD)
    assert 1 == len(texts(rigs[0]))
    assert [[], []] == [report.failures for report in reports]
    assert 2 == sum(report.chunks_deleted for report in reports)


def test_two_threads_that_each_remove_what_the_other_finds_current_leave_one_version() -> None:
    """Neither writes anything, as both versions are there."""
    rig, other = Rig(), Rig()
    other.store.points = rig.store.points
    rig.rag.ingest([Document(id="a", text="the second")])
    second = dict(rig.store.points)
    rig.rag.ingest([Document(id="a", text="the third")])
    rig.store.points.update(second)

    def meanwhile(document_ids: Sequence[str] | None = None) -> Iterator[DocumentVersion]:
        found = list(FakeStore.versions(rig.store, document_ids))
        del rig.store.versions
        other.rag.ingest([Document(id="a", text="the second")])
        return iter(found)

    rig.store.versions = meanwhile  # type: ignore[method-assign]
    rig.rag.ingest([Document(id="a", text="the third")])
    assert ["the second"] == texts(rig)


def test_what_is_nothing_to_ingest_is_named() -> None:
    """As a dictionary, which other libraries take."""
    with pytest.raises(DocumentError, match=r"pipeline\.Document.*not \{'id': 'x'"):
        Rig().rag.ingest([{"id": "x", "text": "y"}])  # type: ignore[list-item]


@pytest.mark.parametrize("given", [{"id": "x", "text": "y"}, None, 5, b"notes.md", Document], ids=repr)
def test_what_is_neither_one_item_nor_several_is_refused(given: Any) -> None:
    """Of a dictionary the keys would be read, as names of files."""
    rag = Rig().rag
    for use in (rag.ingest, rag.verify):
        with pytest.raises(SettingsError, match=r"pipeline\.Document.* or an iterable of them, not ") as caught:
            use(given)
        assert str(caught.value).endswith(f"not {given!r}")


@pytest.mark.parametrize(
    "given",
    [lambda: "", lambda: [""], lambda: ["notes.md", ""], lambda: iter([""])],
    ids=["", "list", "last", "iterator"],
)
def test_an_empty_path_is_not_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Callable[[], Any]
) -> None:
    """It comes of a variable that is not set, and with ``prune`` other folders' documents could go for it."""
    (tmp_path / "notes.md").write_text("secret")
    monkeypatch.chdir(tmp_path)
    rig = Rig()
    for use in (rig.rag.ingest, rig.rag.verify, lambda items: rig.rag.ingest(items, prune=True)):
        with pytest.raises(SettingsError, match="a path is empty"):
            use(given())
    assert set() == rig.ids()
    assert 1 == rig.rag.ingest(".").new


class Shelf(Enum):
    """Neither texts nor numbers."""

    LOW = auto()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (np.int64(2020), 2020),
        (np.float32(1.5), 1.5),
        (np.bool_(True), True),
        (np.str_("en"), "en"),
        (Decimal("1.5"), 1.5),
        ([np.int64(1), 2], [1, 2]),
        ({np.int64(2), np.int64(1)}, [1, 2]),
        ({"b": [np.int64(1)]}, {"b": [1]}),
        (HTTPStatus.OK, 200),
        (StrEnum("Language", ["EN"]).EN, "en"),  # type: ignore[attr-defined]
        (True, True),
        (np.float64(0.1), 0.1),
        (np.longdouble(1.5), 1.5),
        ((np.float32(1.5), Decimal(3), (1, "a")), [1.5, 3.0, [1, "a"]]),
        ({(1, np.int64(2))}, [[1, 2]]),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array(["a"]), ["a"]),
        (np.array(5), 5),
        (np.datetime64("2024-03-01T10:00:00.5", "ns"), datetime(2024, 3, 1, 10, 0, 0, 500_000)),
        (np.array(["2024-03-01"], "datetime64[ns]"), [datetime(2024, 3, 1)]),
        (np.datetime64("2024-03-01"), date(2024, 3, 1)),
        (np.datetime64("12024-03-01", "s"), "12024-03-01T00:00:00"),
        (np.datetime64("NaT", "ns"), None),
        (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (PurePosixPath("/文/a"), "/文/a"),
        (Shelf.LOW, "Shelf.LOW"),
        ({UUID(int=5)}, ["00000000-0000-0000-0000-000000000005"]),
        (np.array([PurePosixPath("a"), None]), ["a", None]),
    ],
)
def test_metadata_of_other_libraries_are_plain_values(given: Any, kept: Any) -> None:
    """As numbers they can be filtered by; as text, which JSON's encoder would make of them, no filter finds them."""
    value = Document(id="a", text="x", metadata={"k": given}).metadata["k"]
    assert (kept, type(kept)) == (value, type(value))


def test_a_mapping_that_is_filled_anew_for_each_document() -> None:
    """As a loop over rows does: documents are made before they are stored, and each has its own."""
    rig = Rig()

    def rows() -> Iterator[Document]:
        row: dict[str, Any] = {"tags": []}
        for n in range(3):
            row["n"] = n
            row["tags"].append(n)
            yield Document(id=f"row {n}", text=f"text of row {n}", metadata=row)

    rig.rag.ingest(rows())
    stored = {chunk.document_id: chunk.metadata for chunk, _ in rig.store.points.values()}
    assert {f"row {n}": {"n": n, "tags": [*range(n + 1)]} for n in range(3)} == stored


def test_what_is_stored_is_not_embedded_anew() -> None:
    """The hash of what JSON has nothing for has always been that of its text."""
    metadata = {
        "day": date(2024, 1, 31),
        "at": datetime(2024, 1, 31, 18, tzinfo=UTC),
        "time": time_of_day(18, 30),
        "took": timedelta(hours=1),
        "id": UUID(int=5),
        "path": PurePosixPath("/文/a"),
        "shelf": Shelf.LOW,
        "price": Decimal("1.50"),
        "nan": math.nan,
        "none": None,
        "of": [{"id": UUID(int=6)}, (Shelf.LOW, date(2024, 1, 31))],
    }
    assert "b957f7c7ce237486a85da2fd1eeb5f2c" == Document("a", "x", metadata=metadata).content_hash()


class Untold:
    """No text can be made of it."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (10**5000, "Exceeds the limit"),
        (object(), "'k' has a value of the type object; what can be are texts, numbers,"),
        ((letter for letter in "ab"), "'k' has a value of the type generator;"),
        (Untold, "'k' has a value of the type type;"),
        (b"en", "'k' has a value of the type bytes;"),
        (np.bytes_(b"en"), "'k' has a value of the type bytes;"),
        (1j, "'k' has a value of the type complex;"),
        ([{"of": (1, Untold())}], "'k' has a value of the type Untold;"),
    ],
    ids=["long number", "object", "generator", "class", "bytes", "bytes of NumPy's", "complex", "within"],
)
def test_metadata_that_cannot_be_stored_are_a_failure(value: Any, says: str) -> None:
    """The others are stored; a verification names it, too. The text of an object, which has its address, would be
    another one in each process."""
    rig = Rig()
    documents = [Document("a", "one"), Document("odd", "two", metadata={"k": value}), Document("b", "three")]
    report = rig.rag.ingest(documents)
    assert ({"a", "b"}, 2, 1) == (rig.ids(), report.new, len(report.failures))
    assert report.failures[0].error.startswith("odd: its metadata cannot be stored: ")
    assert says in report.failures[0].error
    assert ["unreadable"] == [problem.kind for problem in rig.rag.verify(documents).problems]


def test_keys_that_are_no_text_and_numbers_that_are_none() -> None:
    """Nested keys become text, as in JSON; a decimal's NaN is that of floats."""
    document = Document("a", "x", metadata={"k": {(1, 2): 3, date(2024, 1, 31): 4, 5: 6}, "n": Decimal("sNaN")})
    assert {"(1, 2)": 3, "2024-01-31": 4, "5": 6} == document.metadata["k"]
    assert math.isnan(document.metadata["n"])
    with pytest.raises(DocumentError, match="document a: its metadata cannot be read: RuntimeError"):
        Document("a", "x", metadata={"k": {Untold(): 1}})


def test_deep_metadata_are_a_failure_and_take_no_time() -> None:
    """A look at each level, not two at each that double with every level; what is too deep is named."""

    class Number(np.int64):
        asked = 0

        def item(self, *args: Any) -> int:
            Number.asked += 1
            return 1

    inner: Any = Number(1)
    for _ in range(20):
        inner = [inner]
    Document(id="a", text="x", metadata={"k": inner})
    assert Number.asked == 1
    for _ in range(600):
        inner = [inner]
    report = Rig().rag.ingest([Document(id="a", text="x", metadata={"k": inner})])
    assert ["a: metadata of more than 64 levels"] == [failure.error for failure in report.failures]
