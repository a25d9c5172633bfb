"""The embedded store with its real engine, real processes and real files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qdrant_edge as edge
from numpy.typing import NDArray

from pipeline.errors import StoreError, StoreLockedError
from pipeline.stores import shards
from pipeline.stores.edge import EdgeStore
from pipeline.stores.locking import DirectoryLock
from pipeline.stores.storage import INDEXING_KIB, Storage
from pipeline.types import Chunk, Fingerprint, StoreCount
from tests.fakes import FakeEmbedder

ROOT = Path(__file__).parents[2]
EMBEDDER = FakeEmbedder(dimension=32)

OPEN = """
import sys
from pathlib import Path
from pipeline.errors import StoreError
from pipeline.stores.edge import EdgeStore
store = EdgeStore(Path(sys.argv[1]))
try:
    print(store.count().chunks, flush=True)
except StoreError as error:
    print(type(error).__name__, error, flush=True)
sys.stdin.read()
"""

WRITE_FOREVER = """
import sys
from itertools import count
from pathlib import Path
from pipeline.stores.edge import EdgeStore
from pipeline.types import Chunk
from tests.fakes import FakeEmbedder
store, embedder = EdgeStore(Path(sys.argv[1])), FakeEmbedder(dimension=32)
for batch in count():
    chunks = [Chunk(f"{batch}-{i}", "v1", 0, 1, f"text {batch} {i}", "", "source") for i in range(70)]
    store.upsert(chunks, embedder.embed_documents([chunk.text for chunk in chunks]))
    print(batch, flush=True)
"""


def fingerprint(dimension: int = 32) -> Fingerprint:
    return Fingerprint("fake", dimension, chunk_tokens=256, chunk_overlap=32, bm25="test")


def chunk(name: str, text: str = "some text") -> Chunk:
    return Chunk(name, "v1", 0, 1, text, "", name)


def write(store: EdgeStore, *chunks: Chunk) -> None:
    store.upsert(chunks, EMBEDDER.embed_documents([item.text for item in chunks]))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Directory of a collection that holds one chunk and is closed."""
    path = tmp_path / "collections" / "documents"
    store = EdgeStore(path)
    store.ensure_ready(fingerprint())
    write(store, chunk("first"))
    store.close()
    return path


@pytest.fixture
def start() -> Iterator[Callable[[str, Path], subprocess.Popen[str]]]:
    """Starts a program in a process of its own, which does not outlive the test."""
    running: list[subprocess.Popen[str]] = []

    def run(program: str, path: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


Start = Callable[[str, Path], subprocess.Popen[str]]


# ------------------------------------------------------------------ one process at a time


def test_second_process_is_told_who_holds_the_store(path: Path, start: Start) -> None:
    """A store that another process has open answers at once with its id and command line, and what to do."""
    holder = start(OPEN, path)
    assert "1" == first_line(holder)
    store = EdgeStore(path)
    with pytest.raises(StoreLockedError) as caught:
        store.count()
    message = str(caught.value)
    assert f"process {holder.pid} (" in message
    assert "from pipeline.stores.edge import EdgeStore" in message
    assert "RAG_QDRANT_URL" in message


def test_this_process_is_named_to_others(path: Path, start: Start) -> None:
    """The other way round: a new process is told of this one, until this one closes the store."""
    store = EdgeStore(path)
    assert StoreCount(1, 1) == store.count()
    refused = start(OPEN, path)
    assert first_line(refused).startswith(
        f"StoreLockedError the embedded store in {path} is in use by process {os.getpid()} ("
    )
    store.close()
    assert "1" == first_line(start(OPEN, path))


def test_killed_holder_neither_blocks_nor_is_named(path: Path, start: Start) -> None:
    """After a ``kill -9`` the store opens at once, though the note about its holder is still there."""
    holder = start(OPEN, path)
    assert "1" == first_line(holder)
    holder.kill()
    holder.wait()
    assert holder.pid == json.loads((path / "holder.json").read_text())["pid"]
    store = EdgeStore(path)
    assert StoreCount(1, 1) == store.count()
    assert os.getpid() == json.loads((path / "holder.json").read_text())["pid"]
    store.close()
    assert not (path / "holder.json").exists()


def test_stale_note_does_not_mislead(path: Path, start: Start) -> None:
    """If the note names a process that is gone, the error does not."""
    holder = start(OPEN, path)
    assert "1" == first_line(holder)
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    note = json.loads((path / "holder.json").read_text())
    (path / "holder.json").write_text(json.dumps(note | {"pid": int(gone.stdout)}))
    with pytest.raises(StoreLockedError, match="in use by another process"):
        EdgeStore(path).count()


def test_making_a_store_takes_no_lock(path: Path, start: Start) -> None:
    """An EdgeStore that was only made, or asked for its fingerprint, does not keep others out."""
    store = EdgeStore(path)
    assert fingerprint() == store.fingerprint()
    assert "1" == first_line(start(OPEN, path))
    store.close()


def test_stores_of_one_process_share_the_engine(path: Path, start: Start) -> None:
    """Two stores on one directory see each other's writes; it is free for others after the last one closes."""
    one, two = EdgeStore(path), EdgeStore(path / ".." / "documents")
    write(one, chunk("second"))
    assert StoreCount(2, 2) == two.count()
    one.close()
    write(two, chunk("third"))
    with pytest.raises(StoreError, match="closed"):
        one.count()
    assert "StoreLockedError" in first_line(start(OPEN, path))
    two.close()
    assert "3" == first_line(start(OPEN, path))


def test_others_are_kept_out_while_the_engine_is_closed(path: Path, start: Start) -> None:
    """For the building of the index the engine is closed for a moment, and its own lock with it; ours stays."""
    store = EdgeStore(path)
    assert 1 == store.count().chunks
    shard = shards.acquire(path)
    with shard.use("close") as engine:
        engine.close()
        shard._engine = None
        assert f"in use by process {os.getpid()} (" in first_line(start(OPEN, path))
    assert 1 == store.count().chunks
    shards.release(shard)
    store.close()


GIVEN_UP = """
import faulthandler, gc, sys
from pathlib import Path
from pipeline.stores import shards
from pipeline.stores.edge import EdgeStore
faulthandler.dump_traceback_later(120, exit=True)  # else it would hang for good
store = EdgeStore(Path(sys.argv[1]))
reader = store.chunks()
next(reader)
cycle = [reader]
cycle.append(cycle)
del reader, cycle
if sys.argv[2] == "last user":
    store.close()
at_once = shards.OpenShard.open
def collecting(shard, config):
    assert gc.collect() > 0
    at_once(shard, config)
shards.OpenShard.open = collecting
try:
    shards.acquire(Path(sys.argv[1]) / "none")
except Exception as error:
    print(type(error).__name__, end=" ")
print(*(shard.users for shard in shards._shards.values()), end="")
"""


@pytest.mark.parametrize(("who", "left"), [("last user", ""), ("one of two", "1")])
def test_a_reader_that_was_given_up_is_finalised_at_any_moment(path: Path, who: str, left: str) -> None:
    """Also by the garbage collector, while the same thread opens another store."""
    command = [sys.executable, "-W", "ignore", "-c", GIVEN_UP, str(path), who]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert f"StoreError {left}" == run.stdout, run.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_is_refused(path: Path) -> None:
    """After a fork the files are the parent's: the child gets an error, may close and exit, and the parent goes on."""
    store = EdgeStore(path)
    assert 1 == store.count().chunks
    program = (
        "import os, sys, warnings; from pathlib import Path; from pipeline.stores.edge import EdgeStore\n"
        "from pipeline.errors import StoreLockedError\n"
        "store = EdgeStore(Path(sys.argv[1])); store.count()\n"
        "if (pid := os.fork()) == 0:\n"
        "    for candidate in (store, EdgeStore(Path(sys.argv[1]))):\n"
        "        try: candidate.count()\n"
        "        except StoreLockedError: continue\n"
        "        os._exit(1)\n"
        "    store.close()\n"
        "    sys.exit(0)\n"
        "status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "print(status, store.count().chunks)\n"
    )
    store.close()
    run = subprocess.run([sys.executable, "-c", program, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert "0 1" == run.stdout.strip(), run.stderr


FORKED_OFTEN = """
import gc, os, signal, sys
from pathlib import Path
from pipeline.stores.edge import EdgeStore
from pipeline.types import Chunk
from tests.fakes import FakeEmbedder
store, embedder = EdgeStore(Path(sys.argv[1])), FakeEmbedder(dimension=32)
store.count()
for n in range(3):
    if (pid := os.fork()) == 0:
        signal.alarm(60)
        if sys.argv[2] == "close":
            store.close()
        if sys.argv[2] == "delete":
            del store
            gc.collect()
        if sys.argv[2] == "exit":
            sys.exit(0)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    text = f"more text {n}"
    store.upsert([Chunk(text, "v1", 0, 1, text, "", "source")], embedder.embed_documents([text]))
    print(status, len(list(store.chunks())), end=" ")
store.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("how", ["close", "delete", "exit"])
def test_a_forked_child_leaves_the_files_alone(path: Path, how: str) -> None:
    """However a child ends, its copy of the engine does not write into the files, which the parent goes on changing."""
    command = [sys.executable, "-W", "ignore", "-c", FORKED_OFTEN, str(path), how]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "0 2 0 3 0 4" == run.stdout.strip(), run.stderr
    with closing(EdgeStore(path)) as store:
        assert StoreCount(4, 4) == store.count()


# ------------------------------------------------------------------ nothing is lost


def test_kill_loses_no_acknowledged_chunk(path: Path, start: Start) -> None:
    """Each batch whose upsert had returned is whole after a ``kill -9``, flushed or not."""
    writer = start(WRITE_FOREVER, path)
    for expected in range(20):  # 1,400 chunks: one flush, and 400 chunks after it
        assert str(expected) == first_line(writer)
    writer.send_signal(signal.SIGKILL)
    rest, _ = writer.communicate()
    acknowledged = [*range(20), *map(int, rest.split())]
    store = EdgeStore(path)
    stored = {version.document_id for version in store.versions()}
    assert {f"{batch}-{i}" for batch in acknowledged for i in range(70)} <= stored
    text = f"text {acknowledged[-1]} 69"
    assert any(
        f"{acknowledged[-1]}-69" == found.chunk.document_id
        for found in store.search(text, EMBEDDER.embed_query(text), limit=50)
    )
    store.close()


def test_crash_while_making_leaves_no_half_store(tmp_path: Path) -> None:
    """Files of a shard that was never finished are thrown away, and a shard without fingerprint gets one."""
    (tmp_path / "shard.new" / "segments").mkdir(parents=True)
    (tmp_path / "shard.new" / "edge_config.json").write_text("{")
    store = EdgeStore(tmp_path)
    store.ensure_ready(fingerprint())
    store.close()
    (tmp_path / "fingerprint.json").unlink()
    store = EdgeStore(tmp_path)
    assert [] == store.search("text", EMBEDDER.embed_query("text"), limit=5)
    store.ensure_ready(fingerprint())
    write(store, chunk("first"))
    assert StoreCount(1, 1) == store.count()
    store.close()


def test_crash_while_making_does_not_bind_to_a_model(tmp_path: Path) -> None:
    """A shard without fingerprint holds nothing and may be for vectors of another length: it is made anew."""
    store = EdgeStore(tmp_path)
    store.ensure_ready(fingerprint(64))
    store.close()
    (tmp_path / "fingerprint.json").unlink()
    store = EdgeStore(tmp_path)
    store.ensure_ready(fingerprint())
    write(store, chunk("first"))
    assert StoreCount(1, 1) == store.count()
    assert "first" == store.search("text", EMBEDDER.embed_query("text"), limit=5)[0].chunk.document_id
    store.close()


def test_a_store_that_lost_its_fingerprint_loses_nothing_else(tmp_path: Path) -> None:
    """What it holds was written by somebody."""
    store = EdgeStore(tmp_path)
    store.ensure_ready(fingerprint())
    write(store, chunk("first"))
    store.close()
    kept = (tmp_path / "fingerprint.json").read_bytes()
    (tmp_path / "fingerprint.json").unlink()
    store = EdgeStore(tmp_path)
    with pytest.raises(StoreError, match="holds 1 chunks, but its fingerprint"):
        store.ensure_ready(fingerprint())
    (tmp_path / "fingerprint.json").write_bytes(kept)
    assert StoreCount(1, 1) == EdgeStore(tmp_path).count()


def test_of_two_that_make_it_at_once_the_first_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second must not put its own fingerprint over what the first has begun to write into."""
    first, second = EdgeStore(tmp_path), EdgeStore(tmp_path)
    engine = EdgeStore._engine

    def after_the_first(self: EdgeStore, *args: Any) -> Any:
        monkeypatch.undo()
        first.ensure_ready(fingerprint())
        write(first, chunk("first"))
        return engine(self, *args)

    monkeypatch.setattr(EdgeStore, "_engine", after_the_first)
    second.ensure_ready(fingerprint(64))
    assert fingerprint() == second.fingerprint() == EdgeStore(tmp_path).fingerprint()
    assert StoreCount(1, 1) == second.count()
    first.close()
    second.close()


def test_reading_makes_no_files(tmp_path: Path) -> None:
    """A query on a store that does not exist leaves the disk as it was."""
    store = EdgeStore(tmp_path / "none")
    assert [] == store.search("text", EMBEDDER.embed_query("text"), limit=5)
    assert StoreCount(0, 0) == store.count()
    store.optimize()
    store.close()
    assert [] == list(tmp_path.iterdir())


# ------------------------------------------------------------------ what can go wrong


@pytest.mark.parametrize("file", ["shard/edge_config.json", "fingerprint.json", "shard/segments/*/segment.json"])
def test_damaged_files_are_named(path: Path, file: str) -> None:
    """A damaged file gives an error in words, with the directory and what to do; the lock is free again."""
    (damaged,) = path.glob(file)
    intact = damaged.read_bytes()
    damaged.write_text("{")
    store = EdgeStore(path)
    with pytest.raises(StoreError, match="damaged") as caught:
        store.count()
    assert str(path) in str(caught.value)
    damaged.write_bytes(intact)
    assert StoreCount(1, 1) == store.count()
    store.close()


@pytest.mark.parametrize(
    ("file", "kept"), [("payload_storage/page_0.dat", 0.0), ("vector_storage-bm25/deleted/status.dat", 0.5)]
)
def test_damage_within_a_segment_is_named(path: Path, file: str, kept: float) -> None:
    """The engine fails by an error of its own where it reads, or by a panic when it opens."""
    (damaged,) = path.glob(f"shard/segments/*/{file}")
    intact = damaged.read_bytes()
    damaged.write_bytes(intact[: int(kept * len(intact))] or bytes(len(intact)))
    with closing(EdgeStore(path)) as store, pytest.raises(StoreError, match="its files are damaged: bring them back"):
        list(store.chunks())


@pytest.mark.parametrize("vector", [np.ones(3), np.ones((1, 32))], ids=["another dimension", "a row"])
def test_what_the_engine_refuses_is_no_damage(path: Path, vector: NDArray[np.float64]) -> None:
    """Nobody shall delete a healthy collection because a request was wrong."""
    with closing(EdgeStore(path)) as store:
        with pytest.raises(
            StoreError, match=r"could not search the embedded store in .*: (Vector dim|Wrong)"
        ) as caught:
            store.search("some text", vector.astype(np.float32), limit=5)
        assert "delete" not in str(caught.value)
        assert 1 == len(store.search("some text", EMBEDDER.embed_query("some text"), limit=5))


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """A path that leads through a file is an error that names it."""
    (tmp_path / "file").write_text("")
    store = EdgeStore(tmp_path / "file" / "documents")
    assert None is store.fingerprint()
    with pytest.raises(StoreError, match="RAG_DATA_DIR"):
        store.ensure_ready(fingerprint())


def test_full_disk_is_seen_before_writing(path: Path) -> None:
    """The engine dies of a full disk; so more than there is room for is refused beforehand."""
    shard = shards.acquire(path)
    with pytest.raises(StoreError, match="nearly full"):
        shard.check_space(2**60)
    shards.release(shard)


# ------------------------------------------------------------------ the index

DIMENSION = 1280
POINTS = 4_300  # of 5 KiB each: just enough for an index


@pytest.fixture(scope="module")
def vectors() -> NDArray[np.float32]:
    """Vectors in 40 clusters of different width, as texts on topics have them; seeded."""
    rng = np.random.default_rng(11)
    centres = rng.standard_normal((40, DIMENSION))
    member = rng.integers(40, size=POINTS)
    spread = rng.uniform(0.5, 1.5, size=(POINTS, 1))
    found = centres[member] + spread * rng.standard_normal((POINTS, DIMENSION))
    unit: NDArray[np.float32] = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    return unit


@pytest.fixture(scope="module")
def indexed(vectors: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeStore]:
    """A store whose index was built while another thread kept searching."""
    store = EdgeStore(tmp_path_factory.mktemp("indexed"))
    store.ensure_ready(fingerprint(DIMENSION))
    chunks = [Chunk(f"doc-{i}", "v1", 0, 1, f"word{i % 50} text", "", "source", {"half": i % 2}) for i in range(POINTS)]
    store.upsert(chunks, vectors)
    done, failures = threading.Event(), list[str]()

    def search() -> None:
        while not done.is_set():
            if 20 != len(store.search("text", vectors[0], limit=20)):
                failures.append("a search during the build found too little")

    thread = threading.Thread(target=search)
    thread.start()
    told: list[str] = []
    store.optimize(told.append)
    done.set()
    thread.join()
    assert [] == failures
    assert [f"building the index over {POINTS:,} chunks"] == told
    yield store
    store.close()


def indexed_vectors(path: Path) -> int:
    shard = shards.acquire(path)
    with shard.use("look at") as engine:
        count = engine.info().indexed_vectors_count
    shards.release(shard)
    return count


@pytest.mark.parametrize("where", [None, {"half": 1}], ids=["all", "filtered"])
def test_top_100_agrees_with_exact_search(
    indexed: EdgeStore, vectors: NDArray[np.float32], where: dict[str, int] | None
) -> None:
    """With the HNSW index in place, at least 0.98 of the top 100 are those of an exact search."""
    assert 2 * POINTS == indexed_vectors(indexed.path)  # each chunk's dense and sparse vector
    rng = np.random.default_rng(12)
    agreement = []
    for row in rng.integers(POINTS, size=40):
        query = vectors[row] + 0.02 * rng.standard_normal(DIMENSION).astype(np.float32)
        fast = indexed.search("", query, limit=100, mode="dense", where=where)
        exact = indexed.search("", query, limit=100, mode="dense", where=where, exact=True)
        assert 100 == len(fast) == len(exact)
        agreement.append(len({c.chunk.id for c in fast} & {c.chunk.id for c in exact}) / 100)
    assert float(np.mean(agreement)) >= 0.98


def test_index_is_built_once(indexed: EdgeStore) -> None:
    """Optimizing again has nothing to do and says nothing."""
    told: list[str] = []
    indexed.optimize(told.append)
    assert [] == told


def test_a_key_with_the_wrong_index_is_cured(path: Path) -> None:
    """One that an earlier version left for the other kind of range goes at the next filter, for good."""
    with closing(EdgeStore(path)) as store:
        write(store, Chunk("dated", "v1", 0, 1, "some text", "", "dated", {"day": "2024-01-31"}))
        with store._engine("index") as (_, engine):
            engine.update(edge.UpdateOperation.create_field_index("metadata.day", edge.PayloadSchemaType.Float))
    filters: list[tuple[dict[str, Any], list[str]]] = [
        ({"gte": 2024}, []),
        ({"gte": "2024-01-01"}, ["dated"]),
        ({"gte": 2024}, []),
    ]
    for _ in range(2):
        with closing(EdgeStore(path)) as store:
            for wanted, expected in filters:
                found = store.search("some text", None, limit=5, mode="sparse", where={"day": wanted})
                assert expected == [candidate.chunk.document_id for candidate in found]
            store.optimize()


def test_small_collection_needs_no_index(path: Path) -> None:
    """Few chunks are searched one by one: fast and exact."""
    store = EdgeStore(path)
    told: list[str] = []
    store.optimize(told.append)
    assert [] == told
    assert 1 == store.count().chunks
    store.close()


def test_writing_builds_the_index_when_much_piled_up(vectors: NDArray[np.float32], tmp_path: Path) -> None:
    """A write that leaves more than ``optimize_after`` chunks outside the index builds it."""
    store = EdgeStore(tmp_path, optimize_after=POINTS - 100)
    store.ensure_ready(fingerprint(DIMENSION))
    chunks = [chunk(f"doc-{i}") for i in range(POINTS)]
    store.upsert(chunks[:-200], vectors[:-200])
    assert POINTS - 200 == indexed_vectors(store.path)  # the sparse ones, which are always indexed
    store.upsert(chunks[-200:], vectors[-200:])
    assert 2 * POINTS == indexed_vectors(store.path)
    store.close()


def failing_program(path: Path) -> Path:
    """A program that is no Python, and notes when it is started."""
    path.write_text(f"#!/bin/sh\necho started >> '{path.parent / 'starts'}'\necho 'invalid option -I' >&2\nexit 1\n")
    path.chmod(0o755)
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="needs programs that are scripts")
def test_a_program_that_is_no_python_is_not_started(
    vectors: NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside uWSGI and its like ``sys.executable`` is that program: the Python beside it builds the index."""
    monkeypatch.setattr(sys, "executable", str(failing_program(tmp_path / "uwsgi")))
    with closing(EdgeStore(tmp_path / "store")) as store:
        store.ensure_ready(fingerprint(DIMENSION))
        store.upsert([chunk(f"doc-{i}") for i in range(POINTS)], vectors)
        store.optimize()
        assert 2 * POINTS == indexed_vectors(store.path)
    assert not (tmp_path / "starts").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs programs that are scripts")
def test_an_index_that_cannot_be_built_stops_no_write(
    vectors: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is an optimization: a warning says why it failed, and it is not tried again for each write."""
    monkeypatch.setattr(sys, "executable", str(failing_program(tmp_path / "python")))
    with closing(EdgeStore(tmp_path / "store", optimize_after=POINTS - 100)) as store:
        store.ensure_ready(fingerprint(DIMENSION))
        chunks = [chunk(f"doc-{i}") for i in range(POINTS)]
        for rows in (slice(0, -50), slice(-50, -25), slice(-25, None)):
            store.upsert(chunks[rows], vectors[rows])
        store.optimize()
        assert POINTS == store.count().chunks == indexed_vectors(store.path)
        assert "started\n" == (tmp_path / "starts").read_text()
        assert 1 == sum("(invalid option -I); the chunks are safe" in said.message for said in caplog.records)
        monkeypatch.undo()
    with closing(EdgeStore(tmp_path / "store")) as store:
        store.optimize()
        assert 2 * POINTS == indexed_vectors(store.path)


def test_what_is_unindexed_is_known_to_the_next_process(vectors: NDArray[np.float32], tmp_path: Path) -> None:
    """Chunks written by runs of which none has enough for an index get one when there are enough together."""
    half = POINTS // 2
    assert half * 4 * DIMENSION / 1024 < INDEXING_KIB
    told: list[str] = []
    for rows in (slice(0, half), slice(half, POINTS)):
        store = EdgeStore(tmp_path)
        store.ensure_ready(fingerprint(DIMENSION))
        store.upsert([chunk(f"doc-{i}") for i in range(POINTS)][rows], vectors[rows])
        store.optimize(told.append)
        store.close()
    assert [f"building the index over {POINTS:,} chunks"] == told


def test_the_directory_stays_in_use_while_a_child_builds_the_index(tmp_path: Path) -> None:
    """Whoever lent it may be dead: opening segments that are being replaced would fail."""
    lock = DirectoryLock(tmp_path)
    with DirectoryLock(tmp_path).lent(), pytest.raises(StoreLockedError):
        lock.acquire()
    lock.acquire()
    lock.release()


# ------------------------------------------------------------------ how vectors are kept


def segments(path: Path) -> list[dict[str, Any]]:
    """Configurations of the segments that have an index, as the engine wrote them."""
    found = [json.loads(file.read_text())["config"] for file in path.glob("shard/segments/*/segment.json")]
    return [config for config in found if config["vector_data"]["dense"]["index"]["type"] == "hnsw"]


def is_int8(config: dict[str, Any]) -> bool:
    quantization = config["vector_data"]["dense"]["quantization_config"]
    return quantization is not None and quantization["scalar"]["type"] == "int8"


def agreement(store: EdgeStore, vectors: NDArray[np.float32]) -> float:
    """Share of the exact top 100 that is found."""
    rng, shares = np.random.default_rng(12), []
    for row in rng.integers(POINTS, size=20):
        query = vectors[row] + 0.02 * rng.standard_normal(DIMENSION).astype(np.float32)
        fast = store.search("", query, limit=100, mode="dense")
        exact = store.search("", query, limit=100, mode="dense", exact=True)
        by_id = {candidate.chunk.id: candidate.score for candidate in exact}
        shares.append(len(by_id.keys() & {candidate.chunk.id for candidate in fast}) / 100)
        # Rescored: the scores are those of the vectors themselves.
        assert all(
            candidate.score == pytest.approx(by_id[candidate.chunk.id], abs=1e-5)
            for candidate in fast
            if candidate.chunk.id in by_id
        )
    return float(np.mean(shares))


@pytest.fixture(scope="module")
def kept(vectors: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a closed collection with an index, without quantization."""
    path = tmp_path_factory.mktemp("kept") / "documents"
    store = EdgeStore(path)
    store.ensure_ready(fingerprint(DIMENSION))
    store.upsert([chunk(f"doc-{i}") for i in range(POINTS)], vectors)
    store.optimize()
    store.close()
    return path


def test_a_collection_is_stored_anew_where_its_options_change(kept: Path, vectors: NDArray[np.float32]) -> None:
    """At the next optimization and not before; nothing asked for leaves it as it is; and back again."""
    said: list[str] = []

    def optimized(storage: Storage | None) -> list[dict[str, Any]]:
        store = EdgeStore(kept, storage=storage)
        assert 100 == len(store.search("", vectors[0], limit=100, mode="dense"))
        said.clear()
        store.optimize(said.append)
        assert agreement(store, vectors) >= 0.98
        assert POINTS == store.count().chunks
        store.close()
        return segments(kept)

    (plain,) = segments(kept)
    assert not is_int8(plain)
    (int8,) = optimized(Storage("int8"))
    assert is_int8(int8)
    assert "InRamMmap" == int8["vector_data"]["dense"]["storage_type"]
    building = f"building the index over {POINTS:,} chunks"
    assert ["storing the vectors anew (quantization none -> int8)", building] == said
    (disk,) = optimized(Storage(on_disk=True))
    assert is_int8(disk)
    assert "Mmap" == disk["vector_data"]["dense"]["storage_type"]
    assert "Mmap" == disk["sparse_vector_data"]["bm25"]["index"]["index_type"]
    assert ["storing the vectors anew (vectors memory -> disk)", building] == said
    for unchanged in (None, Storage("int8"), Storage("int8", on_disk=True)):
        assert [disk] == optimized(unchanged)
        assert [] == said
    (back,) = optimized(Storage("none", on_disk=False))
    assert not is_int8(back)
    assert "InRamMmap" == back["vector_data"]["dense"]["storage_type"]


def test_a_new_collection_is_made_as_asked_for(vectors: NDArray[np.float32], tmp_path: Path) -> None:
    """Its index has the copies when it is first built, and the top 100 stays as good."""
    store = EdgeStore(tmp_path, storage=Storage("int8", on_disk=True))
    store.ensure_ready(fingerprint(DIMENSION))
    store.upsert([chunk(f"doc-{i}") for i in range(POINTS)], vectors)
    said: list[str] = []
    store.optimize(said.append)
    assert [f"building the index over {POINTS:,} chunks"] == said
    (config,) = segments(tmp_path)
    assert is_int8(config)
    assert agreement(store, vectors) >= 0.98
    store.close()


RECONFIGURE = """
import os, signal, sys
from pathlib import Path
import qdrant_edge as edge
from pipeline.stores import edge_requests, shards
from pipeline.stores.storage import Storage
shard = shards.acquire(Path(sys.argv[1]))
other = Storage("none" if edge_requests.storage(shard.config()).quantization == "int8" else "int8", on_disk=False)
shard.reconfigure(edge.EdgeConfig(**edge_requests.vectors(int(sys.argv[2]), other)))
print(other.quantization, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_crash_between_configuring_and_building_is_made_good(kept: Path) -> None:
    """The engine has its new configuration, the process is gone: the next optimization builds what is due."""
    command = [sys.executable, "-c", RECONFIGURE, str(kept), str(DIMENSION)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert -signal.SIGKILL == killed.returncode, killed.stderr
    wanted = killed.stdout.strip() == "int8"
    assert [not wanted] == [is_int8(config) for config in segments(kept)]
    store = EdgeStore(kept)
    store.optimize()
    store.close()
    assert [wanted] == [is_int8(config) for config in segments(kept)]
