"""Equal files are stored once, with all their paths, until the last of them is gone."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from pipeline.core import Pipeline
from pipeline.errors import StoreError
from pipeline.evaluation.questions import Question, resolve
from pipeline.ingestion import copies
from pipeline.ingestion.run import IngestRun
from pipeline.types import Chunk, Document
from tests.fakes import FakeEmbedder, FakeStore

TEXT = "# Apples\n\n" + " ".join(f"This is sentence {i} about apples." for i in range(30))
OTHER = TEXT.replace("pples", "pricots")


class Rig:
    """A pipeline over fakes, and a folder of files."""

    def __init__(self, folder: Path, store: FakeStore | None = None) -> None:
        self.folder = folder.resolve()
        self.store = store or FakeStore()
        self.embedder = FakeEmbedder()
        self.rag = Pipeline(embedder=self.embedder, store=self.store, chunk_tokens=32, chunk_overlap=0)

    def write(self, **texts: str) -> None:
        for name, text in texts.items():
            (self.folder / f"{name}.md").write_text(text)

    def path(self, name: str) -> str:
        return (self.folder / f"{name}.md").as_posix()

    def stored(self) -> dict[str, list[str]]:
        """Name of each document -> those of its copies; every version must be complete and the only one."""
        versions = list(self.store.versions())
        assert all(version.complete for version in versions)
        assert len(versions) == len({version.document_id for version in versions})
        assert all(version.document_id == version.source for version in versions)
        return {Path(v.document_id).stem: [Path(copy).stem for copy in v.copies] for v in versions}


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_equal_files_are_stored_and_embedded_once(rig: Rig) -> None:
    """Whether they come together or one by one; each path finds the document, and a hit names them all."""
    rig.write(a=TEXT, b=TEXT, c=OTHER)
    first = rig.rag.ingest(rig.folder)
    assert {"a": ["b"], "c": []} == rig.stored()
    assert (3, 0, 0) == (first.new, first.changed, first.unchanged)
    assert len(rig.embedder.embedded) == len(set(rig.embedder.embedded)) == len(rig.store.points)
    rig.write(d=TEXT)
    assert 1 == rig.rag.ingest(rig.path("d")).new
    assert {"a": ["b", "d"], "c": []} == rig.stored()
    again = rig.rag.ingest(rig.folder, prune=True)
    assert (4, 0, 0) == (again.unchanged, again.chunks_written, again.chunks_deleted)
    for name in "abd":
        found = rig.rag.get(rig.path(name))
        assert found is not None
        assert (rig.path("a"), (rig.path("b"), rig.path("d"))) == (found.source, found.copies)
    hit = rig.rag.query("sentence about apples").hits[0]
    assert [rig.path("a"), rig.path("b"), rig.path("d")] == list(hit.sources)
    assert [rig.path("b"), rig.path("d")] == hit.to_dict()["copies"]
    assert ["a.md", "b.md", "d.md"] == hit.metadata["file_name"]


def test_what_is_not_a_file_of_its_own_is_never_shared(rig: Rig) -> None:
    """Whoever gives an id looks for the document by it."""
    (rig.folder / "a.jsonl").write_text('{"id": "1", "text": "same"}\n{"id": "2", "text": "same"}')
    rig.rag.ingest([rig.folder, Document(id="3", text="same"), Document(id="4", text="same", source="3")])
    assert {"1", "2", "3", "4"} == {version.document_id for version in rig.rag.documents()}
    assert 4 == len(rig.rag.query("same").hits)


def test_files_that_differ_in_name_alone_are_equal(rig: Rig) -> None:
    """A title that is only the file's name is none; with another ending it is another kind of file."""
    for name in ("a.txt", "b.txt", "c.rst"):
        (rig.folder / name).write_text("plain words")
    rig.rag.ingest(rig.folder)
    assert {"a": ["b"], "c": []} == rig.stored()


def test_a_document_stays_until_its_last_file_is_gone(rig: Rig) -> None:
    """It then has the name of another; nothing is embedded for that, as its title is its own."""
    rig.write(a=TEXT, b=TEXT, c=TEXT, other=OTHER)
    rig.rag.ingest(rig.folder)
    embedded = len(rig.embedder.embedded)
    for gone, left in (("a", {"b": ["c"]}), ("c", {"b": []}), ("b", {})):
        (rig.folder / f"{gone}.md").unlink()
        assert 1 == rig.rag.ingest(rig.folder, prune=True).deleted
        assert left | {"other": []} == rig.stored()
        assert rig.rag.verify(rig.folder).clean
    assert embedded == len(rig.embedder.embedded)


def test_a_copy_elsewhere_stays_whatever_becomes_of_the_first(rig: Rig, tmp_path: Path) -> None:
    """An ingest of one folder knows nothing of what is in another."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.md").write_text(TEXT)
        rig.rag.ingest(tmp_path / name)
    assert 1 == len(list(rig.store.versions()))
    here, there = ((tmp_path / name / "a.md").resolve() for name in ("here", "there"))
    here.write_text(OTHER)
    report = rig.rag.ingest(here)
    assert (1, 0) == (report.changed, report.new)
    found = {version.document_id: version for version in rig.store.versions()}
    assert {here.as_posix(), there.as_posix()} == found.keys()
    assert all(version.complete and not version.copies for version in found.values())
    assert 1 == rig.rag.ingest(tmp_path / "there").unchanged
    assert rig.rag.verify(tmp_path).clean


def test_files_that_swap_their_contents(rig: Rig) -> None:
    """Each content is held by the other's document while it is compared; neither may be lost."""
    rig.write(a=TEXT, b=OTHER)
    rig.rag.ingest(rig.folder)
    rig.write(a=OTHER, b=TEXT)
    assert 2 == rig.rag.ingest(rig.folder).changed
    assert {"a": [], "b": []} == rig.stored()
    assert rig.rag.verify(rig.folder).clean


@pytest.mark.parametrize(("old", "new"), [("a", "b"), ("b", "a")])
def test_a_content_that_moves_on(rig: Rig, old: str, new: str) -> None:
    """As when logs are rotated: the one that has it now is met before or after the one that had it."""
    rig.write(**{old: TEXT})
    rig.rag.ingest(rig.folder)
    rig.write(**{new: TEXT, old: OTHER})
    rig.rag.ingest(rig.folder)
    assert {"a": [], "b": []} == rig.stored()
    assert rig.rag.verify(rig.folder).clean


def test_a_file_that_is_moved_is_not_embedded_again(rig: Rig) -> None:
    """But where its title was its name, that is another now."""
    rig.write(a=TEXT)
    (rig.folder / "a.txt").write_text("plain words")
    rig.rag.ingest(rig.folder)
    embedded = len(rig.embedder.embedded)
    for name in ("a.md", "a.txt"):
        (rig.folder / name).rename(rig.folder / name.replace("a", "b", 1))
    rig.rag.ingest(rig.folder, prune=True, max_delete=1.0)
    assert rig.rag.verify(rig.folder).clean
    assert ["b.txt\nplain words"] == rig.embedder.embedded[embedded:]
    plain = rig.rag.get((rig.folder / "b.txt").as_posix())
    assert plain is not None
    assert ("b.txt", "b.txt") == (plain.chunks[0].title, plain.metadata["file_name"])


def test_a_file_that_is_moved_to_another_folder_has_a_title_of_its_name(rig: Rig) -> None:
    """Where that is in its title; a file that is equal is a copy of it, whatever their folders are called."""
    for folder in ("one", "two"):
        (rig.folder / folder).mkdir()
        (rig.folder / folder / "copyright").write_text("plain words")
    rig.rag.ingest(rig.folder)
    assert {"copyright": ["copyright"]} == rig.stored()
    (rig.folder / "one").rename(rig.folder / "three")
    (rig.folder / "two" / "copyright").unlink()
    rig.rag.ingest(rig.folder, prune=True, max_delete=1.0)
    assert rig.rag.verify(rig.folder).clean
    assert ["one/copyright\nplain words", "three/copyright\nplain words"] == rig.embedder.embedded
    found = rig.rag.get((rig.folder / "three/copyright").as_posix())
    assert found is not None
    assert ("three/copyright", "copyright") == (found.chunks[0].title, found.metadata["file_name"])


def test_a_copy_that_changes_gets_a_document_of_its_own(rig: Rig) -> None:
    """And one that becomes equal loses it."""
    rig.write(a=TEXT, b=TEXT)
    rig.rag.ingest(rig.folder)
    rig.write(b=OTHER)
    assert (1, 1) == ((report := rig.rag.ingest(rig.folder)).changed, report.unchanged)
    assert {"a": [], "b": []} == rig.stored()
    rig.write(b=TEXT)
    assert 1 == rig.rag.ingest(rig.folder).changed
    assert {"a": ["b"]} == rig.stored()


def test_delete_takes_the_files_that_are_named_alone(rig: Rig) -> None:
    """The others keep the document."""
    rig.write(a=TEXT, b=TEXT, c=TEXT)
    rig.rag.ingest(rig.folder)
    assert 1 == rig.rag.delete(rig.path("a"))
    assert {"b": ["c"]} == rig.stored()
    assert None is rig.rag.get(rig.path("a"))
    assert 1 == rig.rag.delete([rig.path("c"), rig.path("a")])
    assert {"b": []} == rig.stored()
    assert 1 == rig.rag.delete(rig.path("b"))
    assert {} == rig.stored()


def test_verify_knows_copies(rig: Rig) -> None:
    """Of each file it is told whether its content is there."""
    rig.write(a=TEXT, b=TEXT, c=TEXT)
    rig.rag.ingest(rig.folder)
    assert rig.rag.verify(rig.folder).clean
    rig.write(b=OTHER, d=TEXT)
    (rig.folder / "c.md").unlink()
    problems = rig.rag.verify(rig.folder).problems
    told = {(problem.kind, Path(problem.source).stem) for problem in problems}
    assert {("changed", "b"), ("gone", "c"), ("new", "d")} == told


def test_files_of_a_collection_of_before_are_put_together(rig: Rig, tmp_path: Path) -> None:
    """A document each is told as a duplicate, answers once, and is mended by an ingest or a repair."""
    for mend in ("ingest", "repair"):
        rig.store.points.clear()
        for name in "ab":
            rig.write(**{name: TEXT})
            alone = Rig(tmp_path)
            alone.rag.ingest(alone.path(name))
            rig.store.points |= alone.store.points
        rig.store.made_with = alone.store.made_with
        assert {"a": [], "b": []} == rig.stored()
        assert ["duplicate"] == [problem.kind for problem in rig.rag.verify(rig.folder).problems]
        hits = rig.rag.query("sentence about apples", top_n=100, top_k=100).hits
        assert len(hits) == len({hit.text for hit in hits})
        if mend == "ingest":
            rig.rag.ingest(rig.path("b"))
        else:
            assert rig.rag.verify(repair=True).clean
        assert {"a": ["b"]} == rig.stored()


def test_export_and_import_keep_copies(rig: Rig, tmp_path: Path) -> None:
    """An import adds those that the collection does not know."""
    rig.write(a=TEXT, b=TEXT)
    rig.rag.ingest(rig.folder)
    rig.rag.export_to(tmp_path / "all.jsonl.gz")
    other = Rig(tmp_path)
    other.rag.import_from(tmp_path / "all.jsonl.gz")
    assert {"a": ["b"]} == other.stored()
    assert 1 == other.rag.import_from(tmp_path / "all.jsonl.gz").unchanged
    other.rag.delete(other.path("b"))
    rig.write(c=TEXT)
    other.rag.ingest(other.path("c"))
    assert 1 == other.rag.import_from(tmp_path / "all.jsonl.gz").written
    assert {"a": ["b", "c"]} == other.stored()
    assert set(rig.store.points) == set(other.store.points)


def test_what_replaces_a_file_leaves_its_copies_what_it_had(rig: Rig, tmp_path: Path) -> None:
    """An import, or a document with the file's id: neither knows of the other files that have the old content."""
    rig.write(a=TEXT, b=TEXT, c=TEXT)
    rig.rag.ingest(rig.folder)
    (tmp_path / "elsewhere").mkdir()
    other = Rig(tmp_path, FakeStore())
    other.write(a=OTHER)
    other.rag.ingest(other.path("a"))
    other.rag.export_to(tmp_path / "elsewhere" / "all.jsonl")
    for step in ("import", "import", "document", "document"):
        if step == "import":
            rig.rag.import_from(tmp_path / "elsewhere" / "all.jsonl")
        else:
            rig.rag.ingest([Document(id=rig.path("b"), text="Read in another way.", source=rig.path("b"))])
        assert ({"a": [], "b": ["c"]} if step == "import" else {"a": [], "b": [], "c": []}) == rig.stored()
        stored = rig.rag.get(rig.path("c"))
        assert stored is not None
        assert "sentence 29 about apples" in stored.chunks[-1].text
    assert rig.rag.verify().clean


@pytest.mark.parametrize("texts", [[OTHER], [OTHER, "last"], [OTHER, TEXT]])
def test_a_document_with_the_id_of_a_file_that_comes_again(rig: Rig, texts: list[str]) -> None:
    """The last one counts, were it what the file had, and the copy stays."""
    rig.write(a=TEXT, b=TEXT)
    rig.rag.ingest(rig.folder)
    rig.rag.ingest(Document(id=rig.path("a"), text=text, source=rig.path("a")) for text in texts)
    assert {"a": [], "b": []} == rig.stored()
    for name, text in (("a", texts[-1]), ("b", TEXT)):
        stored = rig.rag.get(rig.path(name))
        assert stored is not None
        assert stored.chunks[-1].text.split()[-1] == text.split()[-1]


@pytest.mark.parametrize("word", ["one", "two", "three", "four", "five", "six"])
def test_until_an_ingest_is_at_its_end_copies_answer_with_what_they_have(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    """Whichever version of the changed file answers; what cannot take them along says so."""
    text = f"{word} {TEXT}"
    rig.write(a=text, b=text)
    rig.rag.ingest(rig.folder)
    rig.write(a=OTHER)

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(IngestRun, "_settle", cut_off)
        with pytest.raises(KeyboardInterrupt):
            rig.rag.ingest(rig.folder)
    assert 2 == len(list(rig.store.versions()))
    hits = rig.rag.query(f"{word} apples", top_n=50, top_k=50).hits
    assert any(rig.path("b") in hit.sources for hit in hits)
    for hit in hits:  # of the changed one either the old or the new
        assert 1 == len({other.chunk.content_hash for other in hits if hit.source == other.source})
    exported = rig.rag.export_to(tmp_path / "all.jsonl")
    lines = map(json.loads, (tmp_path / "all.jsonl").read_text().splitlines())
    kept = any(rig.path("b") in line.get("copies", []) for line in lines)
    assert [] == exported.warnings if kept else f"{rig.path('b')}: left out" in exported.warnings[0]
    rig.rag.ingest(rig.folder)
    assert {"a": [], "b": []} == rig.stored()
    assert [] == rig.rag.export_to(tmp_path / "all.jsonl").warnings


def test_what_a_cut_off_change_left_of_a_copy_is_removed(rig: Rig) -> None:
    """Its file is gone since, so that nobody can complete it; what it had before is there under another name."""
    rig.write(a=TEXT, b=TEXT)
    rig.rag.ingest(rig.folder)
    part = Chunk(rig.path("b"), "new", 0, 3, "The first of three.", "", rig.path("b"), {}, ())
    rig.store.upsert([part], rig.embedder.embed_documents([part.text]))
    (rig.folder / "b.md").unlink()
    report = rig.rag.verify(rig.path("a"), repair=True)
    assert [("missing", rig.path("b"))] == [(problem.kind, problem.document_id) for problem in report.repaired]
    assert {"a": ["b"]} == rig.stored()


def test_a_lost_chunk_costs_no_copy(rig: Rig) -> None:
    """What is written again is still that of all files, even of those that are not read."""
    rig.write(a=TEXT, b=TEXT)
    rig.rag.ingest(rig.folder)
    del rig.store.points[next(iter(rig.store.points))]
    rig.rag.ingest(rig.path("a"))
    assert {"a": ["b"]} == rig.stored()


def test_a_copy_is_one_once_all_chunks_know_of_it(rig: Rig) -> None:
    """A write that was cut off is gone on with."""

    class Failing(FakeStore):
        def upsert(self, chunks: Sequence[Chunk], vectors: NDArray) -> None:  # type: ignore[type-arg]
            if chunks[0].copies:
                super().upsert(chunks[:2], vectors[:2])
                raise StoreError("disk full")
            super().upsert(chunks, vectors)

    failing = Rig(rig.folder, Failing())
    rig.write(a=TEXT, b=TEXT)
    with pytest.raises(StoreError, match="disk full"):
        failing.rag.ingest(rig.folder)
    rig.store.points |= failing.store.points
    rig.store.made_with = failing.store.made_with
    assert {"a": []} == rig.stored()
    assert ["stale", "new"] == [problem.kind for problem in rig.rag.verify(rig.folder).problems]
    rig.rag.ingest(rig.folder)
    assert {"a": ["b"]} == rig.stored()


def test_two_ingests_that_put_the_same_right(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second finds that the first has done it since it looked, and plans anew."""
    rig.write(a=TEXT, b=TEXT, c=OTHER)
    rig.rag.ingest(rig.folder)
    (rig.folder / "a.md").unlink()
    other = Rig(rig.folder, rig.store)
    write = copies._write

    def after_the_other(*args: Any) -> bool:
        monkeypatch.undo()
        assert 1 == other.rag.ingest(rig.folder, prune=True, max_delete=1.0).deleted
        return write(*args)

    monkeypatch.setattr(copies, "_write", after_the_other)
    assert 0 == rig.rag.ingest(rig.folder, prune=True, max_delete=1.0).chunks_written
    assert {"b": [], "c": []} == rig.stored()
    assert rig.rag.verify(rig.folder).clean


def test_what_others_keep_changing_is_not_removed(rig: Rig) -> None:
    """It is said, and a document too many is left to the next run, never one too few."""

    class Restless(FakeStore):
        def chunks_with_vectors(self, document_ids: Sequence[str] | None = None) -> Iterator[Any]:
            yield from list(super().chunks_with_vectors(document_ids))[1:]

    restless = Rig(rig.folder, Restless())
    rig.write(a=TEXT, b=TEXT, c=OTHER)
    restless.rag.ingest(rig.folder / "a.md")
    (rig.folder / "a.md").unlink()
    with pytest.raises(StoreError, match="keeps changing"):
        restless.rag.ingest(rig.folder, prune=True, max_delete=1.0)
    assert {"a": [], "c": []} == restless.stored()
    rig.store.points |= restless.store.points
    rig.store.made_with = restless.store.made_with
    rig.rag.ingest(rig.folder, prune=True, max_delete=1.0)
    assert {"b": [], "c": []} == rig.stored()


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        ({"a": TEXT}, {"a": OTHER}, "a"),
        ({"a": TEXT, "b": OTHER}, {"a": TEXT}, "b"),
        ({"a": TEXT, "b": OTHER}, {"a": TEXT, "b": TEXT}, "b"),
        ({"a": TEXT, "b": TEXT}, {"c": OTHER}, "a"),
        ({"b": TEXT, "c": OTHER}, {"b": OTHER, "c": OTHER}, "b"),
    ],
    ids=["changed", "gone", "now a copy", "gone with its copy", "changed to a copy"],
)
def test_chunks_that_are_deleted_are_those_that_were_there(
    rig: Rig, before: dict[str, str], after: dict[str, str], lost: str
) -> None:
    """Of a document that is not complete there are fewer than it says."""
    rig.write(**before)
    rig.rag.ingest(rig.folder)
    rig.store.delete_chunks(
        [id_ for id_, (chunk, _) in rig.store.points.items() if chunk.document_id == rig.path(lost)][:2]
    )
    for name in before:
        (rig.folder / f"{name}.md").unlink()
    rig.write(**after)
    there = set(rig.store.points)
    foretold = rig.rag.ingest(rig.folder, prune=True, max_delete=1.0, dry_run=True)
    done = rig.rag.ingest(rig.folder, prune=True, max_delete=1.0)
    assert len(there - set(rig.store.points)) == done.chunks_deleted == foretold.chunks_deleted > 0


def test_a_dry_run_touches_nothing_and_tells_what_would_be_done(rig: Rig) -> None:
    """Files that were moved, changed, shrunk, removed, or are no longer a copy: it counts as the run itself does."""
    rig.write(
        moved=TEXT, changed=OTHER, shrunk=TEXT + "pears", gone=OTHER + "plums", one=TEXT + "figs", two=TEXT + "figs"
    )
    rig.rag.ingest(rig.folder)
    before = dict(rig.store.points)
    (rig.folder / "moved.md").rename(rig.folder / "away.md")
    (rig.folder / "gone.md").unlink()
    rig.write(changed=OTHER + "limes", shrunk="Pears.", two=TEXT + "dates")
    foretold = rig.rag.ingest(rig.folder, dry_run=True, prune=True, max_delete=1.0)
    assert before.items() == rig.store.points.items()
    done = rig.rag.ingest(rig.folder, prune=True, max_delete=1.0)
    counted = [
        (report.new, report.changed, report.unchanged, report.deleted, report.chunks_written, report.chunks_deleted)
        for report in (foretold, done)
    ]
    assert counted[0] == counted[1]
    assert (1, 3, 1, 2) == counted[0][:4]


def test_a_question_may_name_any_of_the_equal_files(rig: Rig) -> None:
    """Whoever wrote it knew the file by that path."""
    rig.write(a=TEXT, b=TEXT)
    rig.rag.ingest(rig.folder)
    file = rig.folder / "questions.jsonl"
    dataset = resolve(file, [Question(1, "apples?", ("b.md",))], rig.store)
    assert {"1": {rig.path("a"): 1}} == dataset.qrels
