"""``rag watch`` with the real engine, real notifications and real processes."""

from __future__ import annotations

import json
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from pipeline.core import Pipeline
from pipeline.errors import FingerprintError, RagError, SettingsError, StoreLockedError, StoreUnavailableError
from pipeline.ingestion.run import Progress
from pipeline.interfaces import Store
from pipeline.reports import IngestReport
from pipeline.stores.connection import connect
from pipeline.stores.edge import EdgeStore
from pipeline.stores.server import ServerStore
from pipeline.types import Document
from pipeline.watching.run import watch
from tests.fakes import FakeEmbedder
from tests.integration.conftest import ROOT, Rag

PATIENCE_S = 120
NAMES = [f"{i:02}.md" for i in range(12)]


class Watching:
    """A watch in a thread. What it gives is waited for; leaving the block stops it."""

    def __init__(self, store: Path, *paths: Path, **options: Any) -> None:
        self.embedder = FakeEmbedder(dimension=32)
        self.rag = pipeline(store, self.embedder)
        self.stop = threading.Event()
        self._open_store: Callable[[], Store] = options.pop("open_store", lambda: EdgeStore(store))
        options = {"stop": self.stop, "debounce_ms": 100} | options
        self._happened: queue.Queue[IngestReport | RagError | Store | None] = queue.Queue()
        self._error: RagError | None = None
        self._thread = threading.Thread(target=self._run, args=(paths, options))

    def _run(self, paths: tuple[Path, ...], options: dict[str, Any]) -> None:
        try:
            for outcome in watch(self.rag, self._open, paths, **options):
                self._happened.put(outcome)
        except RagError as error:
            self._error = error
        finally:
            self._happened.put(None)

    def _open(self) -> Store:
        store = self._open_store()
        self._happened.put(store)
        return store

    def opened(self) -> None:
        """Waits until the store is opened after what was given last."""
        assert isinstance(self._happened.get(timeout=PATIENCE_S), EdgeStore)

    def _given(self) -> IngestReport | RagError | None:
        while isinstance(event := self._happened.get(timeout=PATIENCE_S), EdgeStore | ServerStore):
            pass
        assert event is None or isinstance(event, IngestReport | RagError)
        return event

    def report(self) -> IngestReport:
        outcome = self._given()
        assert isinstance(outcome, IngestReport), outcome or self._error
        return outcome

    def error(self) -> RagError:
        outcome = self._given()
        assert isinstance(outcome, RagError), outcome
        return outcome

    def end(self) -> RagError | None:
        """Waits for the end; the error that brought it."""
        assert self._given() is None
        return self._error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def pipeline(store: Path, embedder: FakeEmbedder) -> Pipeline:
    return Pipeline(embedder=embedder, store=EdgeStore(store), chunk_tokens=32, chunk_overlap=0)


def put(file: Path, text: str) -> None:
    """In one step, as editors do: a new file beside it takes its place."""
    new = file.with_name(f".{file.name}.new")
    new.write_text(text)
    new.replace(file)


def counts(report: IngestReport) -> tuple[int, int, int, int]:
    return report.new, report.changed, report.deleted, len(report.failures)


def stored(store: Path, root: Path) -> dict[str, str]:
    """Paths below the root -> texts, copies too."""
    with pipeline(store, FakeEmbedder(dimension=32)) as rag:
        chunks = list(rag.store.chunks())
    return {str(Path(path).relative_to(root)): one.text for one in chunks for path in (one.source, *one.copies)}


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in NAMES:
        (docs / name).write_text(f"This is {name}.")
    return docs


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "data" / "collections" / "documents"


HOLD = """
import sys
from pathlib import Path
from pipeline.stores.edge import EdgeStore
print(EdgeStore(Path(sys.argv[1])).count().documents, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def hold(store: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Opens the store in another process, which keeps it until its standard input is closed."""
    running: list[subprocess.Popen[str]] = []

    def run() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(store)]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().strip().isdigit()
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


# ------------------------------------------------------------------ what changes


@pytest.mark.parametrize("polling", ["", "1"], ids=["notified", "polling"])
def test_new_changed_and_removed_files(docs: Path, store: Path, monkeypatch: pytest.MonkeyPatch, polling: str) -> None:
    """Each is an update of its own, which embeds that file alone."""
    monkeypatch.setenv("WATCHFILES_FORCE_POLLING", polling)
    with Watching(store, docs) as watching:
        assert (12, 0, 0, 0) == counts(watching.report())
        put(docs / "new.md", "Something new.")
        assert (1, 0, 0, 0) == counts(watching.report())
        put(docs / "new.md", "Something else.")
        assert (0, 1, 0, 0) == counts(watching.report())
        assert "Something else." == stored(store, docs)["new.md"]
        (docs / "new.md").unlink()
        assert (0, 0, 1, 0) == counts(watching.report())
        assert 14 == len(watching.embedder.embedded)
    assert {*NAMES} == stored(store, docs).keys()


def test_files_that_are_as_they_were_are_not_read_again(docs: Path, store: Path) -> None:
    """They are known by their times; in a folder of thousands of PDF files reading would take minutes."""
    with Watching(store, docs) as watching:
        watching.report()
        put(docs / "new.md", "Something new.")
        report = watching.report()
        assert (1, 0) == (report.new, report.unchanged)
        (docs / "new.md").unlink()
        report = watching.report()
        assert (1, 0) == (report.deleted, report.unchanged)


def test_a_second_change_without_a_notification_is_found(
    docs: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under polling, which compares whole seconds: the files are looked at once more after each update."""
    # "Just before" is long here, so that a slow machine looks again and again.
    monkeypatch.setattr("pipeline.watching.files._FINE_NS", 600e9)
    monkeypatch.setattr("pipeline.watching.run.concerns", lambda path, roots, ignored: "unnoticed" not in path)
    put(docs / "unnoticed.txt", "First version.")
    put(docs / "broken.pdf", "%PDF-1.7 and no more")
    with Watching(store, docs) as watching:
        assert (13, 0, 0, 1) == counts(watching.report())
        put(docs / "unnoticed.txt", "Another version.")
        assert 1 == watching.report().changed
        assert "Another version." == stored(store, docs)["unnoticed.txt"]
        put(docs / "new.txt", "A notified change, which is looked at once more.")
        assert 1 == watching.report().new
        put(docs / "unnoticed.txt", "The last version.")
        assert 1 == watching.report().changed


def test_a_renamed_folder_takes_its_documents_along(docs: Path, store: Path) -> None:
    """All of them at once, over the guard, and without embedding the texts again; copies stay what they are."""
    (docs / "old").mkdir()
    for name in NAMES:
        (docs / name).rename(docs / "old" / name)
    shutil.copy(docs / "old" / "00.md", docs / "copy.md")
    with Watching(store, docs) as watching:
        assert (13, 0, 0, 0) == counts(watching.report())
        embedded = len(watching.embedder.embedded)
        (docs / "old").rename(docs / "fresh")
        report = watching.report()
        assert (12, 0) == (report.deleted, len(report.failures))
        # Where a title is the file's name, it is a part of what is embedded; here the names stay.
        assert embedded == len(watching.embedder.embedded)
    assert {"copy.md", *(f"fresh/{name}" for name in NAMES)} == stored(store, docs).keys()


def test_a_broken_file_is_reported_and_the_others_go_on(docs: Path, store: Path) -> None:
    """Once it is mended it is read; a broken file that nobody touches is not reported with every update."""
    with Watching(store, docs) as watching:
        watching.report()
        put(docs / "broken.pdf", "%PDF-1.7 and no more")
        broken = watching.report()
        assert (0, 0, 0, 1) == counts(broken)
        assert broken.failures[0].source.endswith("broken.pdf")
        put(docs / "new.md", "Something new.")
        assert (1, 0, 0, 0) == counts(watching.report())
        put(docs / "broken.pdf", "It is text now.")
        assert (1, 0, 0, 0) == counts(watching.report())


def test_an_emptied_file_is_removed(docs: Path, store: Path) -> None:
    """No file went, so that it is seen only when it is read; a picture is no failure, and is not read again."""
    (docs / "logo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with Watching(store, docs) as watching:
        report = watching.report()
        assert ((12, 0, 0, 0), 1) == (counts(report), len(report.skipped))
        put(docs / NAMES[0], "")
        emptied = watching.report()
        assert "stays until an ingest with --prune" in emptied.failures[0].error
        assert (0, 0, 1, 0) == counts(watching.report())
        put(docs / "new.md", "Something new.")
        report = watching.report()
        assert ((1, 0, 0, 0), []) == (counts(report), report.skipped)
    assert {*NAMES[1:], "new.md"} == stored(store, docs).keys()


def test_lines_that_leave_a_jsonl_file_are_removed(docs: Path, store: Path) -> None:
    """Its documents have ids of their own."""
    lines = [json.dumps({"id": f"line {i}", "text": f"Line number {i}."}) for i in range(10)]
    (docs / "all.jsonl").write_text("\n".join(lines))
    with Watching(store, docs) as watching:
        assert 22 == watching.report().new
        put(docs / "all.jsonl", "\n".join(lines[:-1]))
        assert (0, 0, 1, 0) == counts(watching.report())
        (docs / "all.jsonl").rename(docs / ".hidden.jsonl")
        report = watching.report()
        assert "delete 9 of 21" in report.failures[0].error


def test_a_file_is_watched_through_atomic_saves(docs: Path, store: Path) -> None:
    """Each save puts another file in its place, with which a watch on the file itself would end."""
    file = docs / NAMES[0]
    with Watching(store, file) as watching:
        assert (1, 0, 0, 0) == counts(watching.report())
        for text in ("First save.", "Second save.", "Third save."):
            put(file, text)
            assert (0, 1, 0, 0) == counts(watching.report())
    assert {NAMES[0]: "Third save."} == stored(store, docs)


# ---------------------------------------------------------- what must not be removed


def test_an_emptied_folder_does_not_empty_the_collection(docs: Path, store: Path) -> None:
    """It may be unmounted. What comes back is watched again, and what is then gone is removed."""
    with Watching(store, docs) as watching:
        watching.report()
        away = docs.rename(docs.with_name("away"))
        docs.mkdir()
        emptied = [watching.report()]
        if "is not there" in emptied[0].failures[0].error:  # looked at between the two steps
            emptied.append(watching.report())
        assert "prune would delete 12 of 12" in emptied[-1].failures[0].error
        assert 12 == len(stored(store, docs))
        watching.opened()  # the second look, which does not say the same again
        put(docs / "new.md", "Something new.")
        assert (1, 0, 0, 1) == counts(watching.report())
        (docs / "new.md").unlink()
        docs.rmdir()
        (away / NAMES[0]).unlink()
        away.rename(docs)
        reports = iter(watching.report, None)
        assert any(report.deleted and not report.failures for report in reports)
        put(docs / "newer.md", "Something newer.")
        assert (1, 0, 0, 0) == counts(watching.report())


def test_a_folder_that_is_away_keeps_its_documents_and_the_others_go_on(
    docs: Path, store: Path, tmp_path: Path
) -> None:
    """It is noticed when it is back."""
    other = tmp_path / "other"
    other.mkdir()
    put(other / "other.md", "In another folder.")
    with Watching(store, docs, other) as watching:
        assert 13 == watching.report().new
        docs.rename(docs.with_name("away"))
        assert ["is not there"] == [failure.error[:12] for failure in watching.report().failures]
        put(other / "new.md", "Something new.")
        assert (1, 0, 0, 1) == counts(watching.report())
        watching.opened()  # the second look: from now on nothing is looked at by itself
        put(docs.with_name("away") / "late.md", "Written while it was away.")
        docs.with_name("away").rename(docs)
        assert (1, 0, 0, 0) == counts(watching.report())
    assert 15 == len(stored(store, tmp_path))


def test_the_guard_is_the_one_that_was_asked_for(docs: Path, store: Path) -> None:
    """With --max-delete 1 everything may go."""
    with Watching(store, docs, max_delete=1.0) as watching:
        watching.report()
        (docs / "sub").mkdir()
        for name in NAMES[2:]:
            (docs / name).rename(docs / "sub" / name)
        (docs / "sub").rename(docs / ".sub")
        while len(stored(store, docs)) > 2:
            assert not watching.report().failures
    assert {*NAMES[:2]} == stored(store, docs).keys()


# ------------------------------------------------------------------------ the store


def test_the_store_is_free_between_updates_and_waited_for(
    docs: Path, store: Path, hold: Callable[[], subprocess.Popen[str]]
) -> None:
    """Another process opens it after an update; the next update names it, and goes on once it is done."""
    with Watching(store, docs) as watching:
        watching.report()
        holder = hold()
        put(docs / "new.md", "Something new.")
        error = watching.error()
        assert isinstance(error, StoreLockedError)
        assert f"process {holder.pid} (" in str(error)
        holder.communicate()
        assert (1, 0, 0, 0) == counts(watching.report())


def test_a_store_that_is_in_use_at_the_start_is_waited_for(
    docs: Path, store: Path, hold: Callable[[], subprocess.Popen[str]]
) -> None:
    """A query may be under way just then."""
    with pipeline(store, FakeEmbedder(dimension=32)) as rag:
        rag.ingest(docs / NAMES[0])
    holder = hold()
    with Watching(store, docs) as watching:
        assert isinstance(watching.error(), StoreLockedError)
        holder.communicate()
        assert 11 == watching.report().new


def test_a_server_that_is_away_is_tried_again_at_the_next_change(docs: Path, store: Path) -> None:
    """From the first update on: the server may be started together with the watch."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{unused.getsockname()[1]}"
        stores: list[Store] = [ServerStore(connect(away), "documents", deadline=0.1)]
        with Watching(store, docs, open_store=lambda: stores.pop() if stores else EdgeStore(store)) as watching:
            assert isinstance(watching.error(), StoreUnavailableError)
            put(docs / "new.md", "Something new.")
            assert (13, 0, 0, 0) == counts(watching.report())


def test_what_somebody_else_removes_from_the_collection_comes_back(docs: Path, store: Path) -> None:
    """That files are as they were says nothing then."""
    with Watching(store, docs) as watching:
        watching.report()
        with pipeline(store, FakeEmbedder(dimension=32)) as rag:
            assert 1 == rag.delete([str(docs / NAMES[0])])
        put(docs / "new.md", "Something new.")
        assert 2 == watching.report().new
        shutil.rmtree(store)
        put(docs / "new.md", "Something else.")
        assert 13 == watching.report().new


def test_what_somebody_else_puts_in_the_place_of_something_is_noticed(docs: Path, store: Path) -> None:
    """There are as many documents and chunks then as before."""
    with Watching(store, docs) as watching:
        watching.report()
        with pipeline(store, FakeEmbedder(dimension=32)) as rag:
            assert 1 == rag.delete([str(docs / NAMES[0])])
            rag.ingest([Document("elsewhere", "From elsewhere.")])
        put(docs / "new.md", "Something new.")
        assert 2 == watching.report().new
        with pipeline(store, FakeEmbedder(dimension=32)) as rag:
            rag.ingest([Document(str(docs / NAMES[1]), "Not what the file holds.", from_file=True)])
        put(docs / "new.md", "Something else.")
        assert 2 == watching.report().changed
    with pipeline(store, FakeEmbedder(dimension=32)) as rag:
        assert ["This is 01.md."] == [one.text for one in rag.store.chunks([str(docs / NAMES[1])])]


def test_a_collection_that_is_made_anew_with_another_model_ends_it(docs: Path, store: Path) -> None:
    """It needs other settings, and those of a process do not change."""
    with Watching(store, docs) as watching:
        watching.report()
        shutil.rmtree(store)
        with pipeline(store, FakeEmbedder(dimension=48, name="other")) as rag:
            rag.ingest(docs)
        put(docs / "new.md", "Something new.")
        assert isinstance(watching.end(), FingerprintError)


def test_a_path_that_does_not_exist_ends_it_at_once(docs: Path, store: Path) -> None:
    """It is mistyped."""
    with Watching(store, docs, docs / "nowhere") as watching:
        assert isinstance(watching.end(), SettingsError)


def test_its_own_data_is_not_read(docs: Path, store: Path) -> None:
    """A data directory inside the folder is passed over, whatever its name."""
    inside = docs / "data" / "collections" / "documents"
    (docs / "data").mkdir()
    put(docs / "data" / "notes.md", "This lies in the data directory.")
    options = {"open_store": lambda: EdgeStore(inside), "ignored": [docs / "data"]}
    with Watching(inside, docs, **options) as watching:
        assert (12, 0, 0, 0) == counts(watching.report())
        put(docs / "new.md", "Something new.")
        assert (1, 0, 0, 0) == counts(watching.report())
    assert {*NAMES, "new.md"} == stored(inside, docs).keys()


def test_stopped_in_the_middle_of_an_update_the_next_one_goes_on_there(docs: Path, store: Path) -> None:
    """It ends between two steps; what was written stays."""
    lines = [json.dumps({"id": f"line {i}", "text": f"Line number {i}."}) for i in range(1500)]
    put(docs / "many.jsonl", "\n".join(lines))
    stop = threading.Event()

    def show(step: Progress) -> None:
        if step.chunks:
            stop.set()

    with Watching(store, docs, stop=stop, showing=lambda: nullcontext(show)) as watching:
        assert watching.end() is None
    with pipeline(store, FakeEmbedder(dimension=32)) as rag:
        written = rag.store.count().documents
    assert 0 < written < 1512
    with Watching(store, docs) as watching:
        report = watching.report()
        assert (1512 - written, written) == (report.new, report.unchanged)


# ------------------------------------------------------------------- the real command


@pytest.fixture
def watched(rag: Rag, docs: Path) -> Iterator[subprocess.Popen[str]]:
    """``rag watch`` on the folder, with the real models."""
    process = rag.start("watch", str(docs), "--json", "--debounce-ms", "100", PYTHONUNBUFFERED="")
    yield process
    process.kill()
    process.communicate()


def line(stream: Any) -> str:
    return str(stream.readline())


def test_queries_are_answered_between_two_updates(rag: Rag, docs: Path, watched: subprocess.Popen[str]) -> None:
    """By another process, from what was written a moment ago; Ctrl-C then ends the watch in order."""
    assert 12 == json.loads(line(watched.stdout))["documents"]["new"]
    put(docs / "backup.md", "A snapshot of the collection is taken every night.")
    assert 1 == json.loads(line(watched.stdout))["documents"]["new"]
    hits = rag.json("query", "When is the snapshot taken?", "--reranker", "none")["hits"]
    assert str(docs / "backup.md") == hits[0]["source"]
    (docs / "backup.md").unlink()
    assert 1 == json.loads(line(watched.stdout))["documents"]["deleted"]
    watched.send_signal(signal.SIGINT)
    rest, messages = watched.communicate(timeout=PATIENCE_S)
    assert (0, "") == (watched.returncode, rest)
    said = messages.splitlines()
    assert f"rag: watching {docs} (Ctrl-C to stop)" == said[0]
    # On a slow machine it says how far an update is, too, and that the query has the store that it waits for.
    slow = (" files, ", f"the embedded store in {rag.folder / 'data'}")
    assert ["12 written, 0 removed, 0 failed", "1 written, 0 removed, 0 failed", "0 written, 1 removed, 0 failed"] == [
        text.removeprefix("rag: ").partition(" (")[0]
        for text in said[1:-1]
        if text.startswith("rag: ") and not any(words in text for words in slow)
    ]
    assert "rag: stopped watching" == said[-1]


def test_sigterm_at_any_moment_ends_it_in_order(rag: Rag, docs: Path, watched: subprocess.Popen[str]) -> None:
    """Here in the first update, or before it: the store is whole, and free."""
    assert line(watched.stderr).startswith("rag: watching")
    watched.send_signal(signal.SIGTERM)
    _, messages = watched.communicate(timeout=PATIENCE_S)
    assert (0, "rag: stopped watching") == (watched.returncode, messages.splitlines()[-1])
    assert "Traceback" not in messages
    assert 12 == sum(rag.json("ingest", str(docs))["documents"].values())
    assert rag.json("verify", str(docs))["clean"]


def test_wrong_arguments_are_said_in_a_line(rag: Rag, tmp_path: Path) -> None:
    """With exit code 2, as for an ingest."""
    done = rag("watch", str(tmp_path / "nowhere"))
    assert 2 == done.returncode
    assert "rag: error: no such file or folder" in done.stderr
    assert 1 == len(done.stderr.splitlines())
