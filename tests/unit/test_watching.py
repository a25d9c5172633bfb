from collections.abc import Set
from pathlib import Path

import pytest

from pipeline.core import Pipeline
from pipeline.ingestion.changes import plan_prune
from pipeline.reports import Failure, IngestReport, NoText
from pipeline.types import DocumentVersion
from pipeline.watching.command import described
from pipeline.watching.files import KnownFiles, Plan, Scan, Signature, places, scan
from pipeline.watching.run import concerns
from tests.fakes import FakeEmbedder, FakeStore

SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND


def signature(inode: int, changed_ns: int = NOW - 60 * SECOND) -> Signature:
    return (1, inode, 100, changed_ns, changed_ns)


def learned(files: dict[str, Signature], *, doubtful: bool = False, missed: Set[str] = frozenset()) -> KnownFiles:
    known = KnownFiles()
    known.learn(Scan(files, NOW), doubtful=doubtful, missed=missed)
    return known


def plan(known: KnownFiles, files: dict[str, Signature]) -> Plan | None:
    return known.plan(Scan(files, NOW))


FILES = {"/d/a.md": signature(1), "/d/b.md": signature(2)}


def test_the_first_update_reads_everything_and_prunes() -> None:
    """Nobody knows what happened before the start."""
    assert Plan(frozenset(), prune=True) == plan(KnownFiles(), FILES)


def test_files_that_are_as_they_were_need_no_update() -> None:
    """A temporary file came and went, say."""
    assert plan(learned(FILES), FILES) is None


def test_only_the_changed_file_is_read() -> None:
    """Nothing is gone, so there is nothing to prune."""
    changed = FILES | {"/d/b.md": signature(2, NOW - 30 * SECOND)}
    assert Plan(frozenset({"/d/a.md"}), prune=False) == plan(learned(FILES), changed)


def test_a_file_that_is_gone_is_pruned_without_reading_the_others() -> None:
    """A deletion in a folder of thousands of PDF files must not read them all."""
    assert Plan(frozenset({"/d/a.md"}), prune=True) == plan(learned(FILES), {"/d/a.md": signature(1)})


def test_a_file_that_changed_just_now_is_read_once_more() -> None:
    """Within one tick of the clock it may change again and look the same."""
    recent = FILES | {"/d/b.md": signature(2, NOW - SECOND)}
    assert Plan(frozenset({"/d/a.md"}), prune=False) == plan(learned(recent), recent)


@pytest.mark.parametrize(
    ("age_s", "unsettled"),
    [(60, False), (2, False), (1, True), (0.5, False), (0.1, False), (0.05, True), (-0.05, True), (-60, False)],
)
def test_only_a_file_that_changed_just_now_is_looked_at_again_by_itself(age_s: float, unsettled: bool) -> None:
    """That is longer where times have no fractions of a second. What another clock dated ahead would be so for ever."""
    assert unsettled == learned(FILES | {"/d/b.md": signature(2, NOW - int(age_s * SECOND))}).unsettled


def test_a_file_that_changed_just_now_and_is_gone_is_pruned() -> None:
    """That its times are not trusted does not mean that it was never there."""
    recent = FILES | {"/d/b.md": signature(2, NOW - SECOND)}
    assert Plan(frozenset({"/d/a.md"}), prune=True) == plan(learned(recent), {"/d/a.md": signature(1)})


@pytest.mark.parametrize(
    "now",
    [
        {"/d/x.jsonl": signature(3), "/d/y.jsonl": signature(4, NOW - 30 * SECOND)},
        {"/d/x.jsonl": signature(3)},
        {"/d/x.jsonl": signature(3), "/d/y.jsonl": signature(4), "/d/z.ndjson": signature(5)},
    ],
    ids=["changed", "gone", "new"],
)
def test_jsonl_files_are_read_all_together_or_not_at_all(now: dict[str, Signature]) -> None:
    """Of an id that is in two of them the last counts, which the changed one alone does not tell."""
    known = learned(FILES | {"/d/x.jsonl": signature(3), "/d/y.jsonl": signature(4)})
    assert Plan(frozenset(FILES), prune=True) == plan(known, FILES | now)


def test_after_failures_the_next_update_prunes() -> None:
    """The files in a folder that could not be read may have gone meanwhile; a refused prune is tried again."""
    assert Plan(frozenset(FILES), prune=True) == plan(learned(FILES, doubtful=True), FILES)


def test_what_could_not_be_read_is_tried_again() -> None:
    """The fault may pass without the file changing, as that of a network folder."""
    known = learned(FILES, doubtful=True, missed={"/d/a.md"})
    assert Plan(frozenset({"/d/b.md"}), prune=True) == plan(known, FILES)
    assert not known.unsettled


def test_a_scan_finds_what_an_ingest_reads(tmp_path: Path) -> None:
    """Hidden files and folders are none of it, and neither are ignored folders."""
    for name in ("a.md", "sub/b.md", "sub/.git/c.md", "store/d.md", "node_modules/e.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "link.md").symlink_to(tmp_path / "nowhere.md")
    found = scan([tmp_path], {str(tmp_path / "store")})
    assert {str(tmp_path / name) for name in ("a.md", "sub/b.md", "nowhere.md")} == found.files.keys()
    assert 5 == len(found.files[str(tmp_path / "nowhere.md")])


def test_another_file_in_the_place_of_one_is_noticed(tmp_path: Path) -> None:
    """By its inode: a watch on the file itself would end unnoticed."""
    file = tmp_path / "a.md"
    assert [None] == places([file])
    file.write_text("x")
    first = places([file])
    (tmp_path / "new").write_text("x")
    (tmp_path / "new").replace(file)
    assert [None] != first != places([file])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/h/.notes", True),
        ("/h/.notes/a.md", True),
        ("/h/.notes/sub/a.md", True),
        ("/h/.notes/.a.md.swp", False),
        ("/h/.notes/.git/index", False),
        ("/h/.notes/sub/node_modules/x.js", False),
        ("/h/.notes/store", False),
        ("/h/.notes/store/lock", False),
        ("/h/.notes/stores/a.md", True),
        ("/h/.notes/.git/given.md", True),
    ],
)
def test_what_an_ingest_leaves_out_wakes_nobody(path: str, expected: bool) -> None:
    """The rule is that of an ingest: below the given paths, not in them. The store's own writes are left out, too."""
    assert expected == concerns(path, ["/h/.notes", "/h/.notes/.git/given.md"], ["/h/.notes/store"])


def test_moved_documents_do_not_count_as_removed() -> None:
    """A renamed folder loses nothing, however much is in it; an emptied one does."""
    versions = [DocumentVersion(f"/d/old/{i}", f"h{i}", f"/d/old/{i}", 1, 1) for i in range(5)]
    moved = plan_prune(versions, ["/d"], [f"/d/new/{i}" for i in range(5)], [], contents={f"h{i}" for i in range(5)})
    assert (5, None) == (len(moved.doomed), moved.refusal(0.2))
    partly = plan_prune(versions, ["/d"], [f"/d/new/{i}" for i in range(3)], [], contents={"h0", "h1", "h2"})
    assert "delete 2 of 5" in str(partly.refusal(0.2))
    assert "delete 5 of 5" in str(plan_prune(versions, ["/d"], [], []).refusal(0.2))


def test_unread_files_keep_what_is_stored_of_them(tmp_path: Path) -> None:
    """They are passed over, by name or with their folder; what is gone is pruned all the same."""
    for name in ("a.md", "b.md", "sub/c.md", "gone.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"The text of {name} is short.")
    store = FakeStore()
    rag = Pipeline(embedder=FakeEmbedder(), store=store, chunk_tokens=32, chunk_overlap=0)
    rag.ingest(tmp_path)
    (tmp_path / "gone.md").unlink()
    (tmp_path / "a.md").write_text("This is not read.")
    (tmp_path / "b.md").write_text("This is another text.")
    unread = {str(tmp_path / "a.md"), str(tmp_path / "sub")}
    report = rag.ingest(tmp_path, prune=True, unread=unread)
    assert (0, 1, 0, 1, []) == (report.new, report.changed, report.unchanged, report.deleted, report.warnings)
    assert {"a.md", "b.md", "c.md"} == {Path(document.document_id).name for document in rag.documents()}


def test_an_update_is_said_in_a_line_and_each_failure_in_one() -> None:
    """What it did comes last, so that it is what stands above the prompt."""
    report = IngestReport(new=1, changed=1, deleted=3, failures=[Failure("/d/x.pdf", "damaged")], seconds=0.84)
    assert ["/d/x.pdf: damaged", "2 written, 3 removed, 1 failed (0.8 s)"] == described(report)
    skipped = [NoText(f"/d/{name}", said) for name, said in (("a", "empty file"), *[("b", "PNG image, no text")] * 2)]
    (line,) = described(IngestReport(skipped=skipped, seconds=1.0))
    said = "0 written, 0 removed, 0 failed, 3 files without text (PNG image: 2, empty file: 1) skipped (1.0 s)"
    assert said == line
