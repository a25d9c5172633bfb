"""What a process leaves to the children that it forks: what is the parent's is refused, all else works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import indent

import pytest

from tests.loopback import Loopback, Reply, Request

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

FORK = """
import os, signal, sys, traceback
{parent}
if (pid := os.fork()) == 0:
    signal.alarm(60)  # else it would hang for good where it does
    try:
{child}
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
{after}
print(status, flush=True)
"""


def fork(parent: str, child: str, *arguments: str, after: str = "", data_dir: Path | None = None) -> list[str]:
    """What a program prints that runs ``parent``, ``child`` in a forked child, and ``after`` when that is through."""
    program = FORK.format(parent=parent, child=indent(child.strip(), " " * 8), after=after)
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        cwd=ROOT if data_dir is None else data_dir,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | ({} if data_dir is None else {"RAG_DATA_DIR": str(data_dir)}),
        capture_output=True,
        text=True,
    )
    assert 0 == run.returncode, run.stderr
    assert "0" == run.stdout.split()[-1], run.stderr
    return run.stdout.splitlines()[:-1]


PARENT = """
from pathlib import Path
from pipeline import Document, ForkedError, Pipeline
from pipeline.rerankers.http import HttpReranker
from pipeline.stores.edge import EdgeStore
from tests.fakes import FakeEmbedder
rag = Pipeline(
    embedder=FakeEmbedder(), store=EdgeStore(Path(sys.argv[2])), reranker=HttpReranker(sys.argv[1], model="a model")
)
rag.ingest([Document(id="a", text="hello world")])
rag.query("asked by the parent")
"""
CHILD = """
import asyncio
calls = [
    lambda: rag.query("asked by the child"),
    lambda: asyncio.run(rag.aquery("asked by the child")),
    lambda: rag.ingest([Document(id="b", text="a text")]),
    rag.documents,
    lambda: rag.get("a"),
    lambda: rag.delete("a"),
    rag.verify,
    lambda: rag.export_to("never.jsonl"),
    lambda: rag.import_from("never.jsonl"),
    rag.reindex,
    rag.check_collection,
    lambda: rag.reranker.score("asked by the child", ["a text"]),
]
for call in calls:
    try:
        call()
    except ForkedError as error:
        print(error, flush=True)
rag.close()
"""
AFTER = """
print(rag.query("asked by the parent").hits[0].rerank.raw, flush=True)
rag.close()
"""


def test_an_inherited_pipeline_is_refused(tmp_path: Path) -> None:
    """On one connection child and parent would read each other's answers. The child may close it, and nothing comes of
    it."""

    def respond(request: Request) -> Reply:
        results = [{"index": place, "relevance_score": 0.75} for place, _ in enumerate(request.json["documents"])]
        return Reply(json={"results": results})

    with Loopback(respond) as server:
        *refused, after = fork(PARENT, CHILD, server.url, str(tmp_path / "documents"), after=AFTER)
        assert {"asked by the parent"} == {request.json["query"] for request in server.requests}
        assert 1 == server.connections
    assert 12 == len(refused)
    assert all("before the process was forked; make the pipeline in each worker" in line for line in refused)
    assert "0.75" == after


ASKED = """
import asyncio
from pipeline import Document, Pipeline
from tests.fakes import FakeEmbedder, FakeStore

async def ask():
    rag = Pipeline(embedder=FakeEmbedder(), store=FakeStore())
    report = await rag.aingest([Document(id="a", text="hello world")])
    print(report.new, len((await rag.aquery("hello")).hits), flush=True)

asyncio.run(ask())
"""


def test_a_child_has_threads_of_its_own_for_asynchronous_calls() -> None:
    """Those of the parent, which wait for work, are not there: a call would never be answered."""
    assert ["1 1", "1 1"] == fork(ASKED, "asyncio.run(ask())")


def test_an_inherited_connection_to_a_server_is_refused() -> None:
    """As a pipeline's, where a store is used by itself."""
    parent = """
from qdrant_client import QdrantClient
from pipeline.errors import ForkedError
from pipeline.stores.connection import Connection, patience
connection = Connection(QdrantClient(":memory:"), "documents", patience(5))
assert connection.once("ask", lambda: 1) == 1
"""
    child = """
try:
    connection.once("ask", lambda: 1)
except ForkedError as error:
    print(error, flush=True)
"""
    (said,) = fork(parent, child)
    assert said.startswith("the connection to :memory: was loaded before the process was forked")


@pytest.mark.parametrize(
    "lock",
    [
        "build._default_lock",
        "hub._loading",
        "inference.conversion._one_at_a_time",
        "inference.folder._tokenizers_lock",
        "inference.token_vectors._shared_lock",
        "traffic._gates_lock",
    ],
)
def test_a_lock_that_is_held_while_the_process_is_forked_is_free_in_the_child(lock: str) -> None:
    """The thread of the parent that holds it is not there to give it back."""
    module, _, name = lock.rpartition(".")
    assert [] == fork(
        f"from pipeline.{module} import {name}\nimport pipeline.{module} as module\n{name}.acquire()",
        f"with module.{name}:\n    pass",
    )


def test_a_child_has_all_places_at_an_endpoint() -> None:
    """Those that the parent's requests take are never given back there."""
    parent = """
import time
from pipeline.traffic import shared_gate
def ask(seconds):
    gate = shared_gate("a reranker", "http://localhost", None, 1)
    return gate.passing(time.monotonic() + seconds, clock=time.monotonic, sleep=time.sleep)
request = ask(1)
request.__enter__()
"""
    assert [] == fork(parent, "with ask(0):\n    pass")


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_cache_in_use_is_waited_for(tmp_path: Path, kind: str) -> None:
    """Whatever a thread is doing with it, in SQLite or outside, parent and child go on with it."""
    path = repr(str(tmp_path / "kept.sqlite")) if kind == "file" else "None"
    parent = f"""
import threading
from pathlib import Path
from pipeline.byte_cache import ByteCache
cache = ByteCache({path} and Path({path}), 1000, "test")
cache.put({{b"a": b"kept"}})
using, forking = threading.Event(), threading.Event()
os.register_at_fork(before=forking.set)  # called before those of the package
LONG = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000) SELECT count(*) FROM n"
def use(database):
    using.set()
    forking.wait()
    return database.execute(LONG).fetchone()
thread = threading.Thread(target=cache._try, args=[use])
thread.start()
using.wait()
"""
    child = 'assert cache.get([b"a"]) == {b"a": b"kept"}\ncache.close()'
    after = 'thread.join()\nassert cache.get([b"a"]) == {b"a": b"kept"}'
    assert [] == fork(parent, child, after=after)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_file_of_a_cache_is_open_in_a_child(tmp_path: Path) -> None:
    """SQLite would believe that the child has the parent's locks."""
    parent = """
from pathlib import Path
from pipeline.byte_cache import ByteCache
cache = ByteCache(Path(sys.argv[1]), 1000, "test")
cache.put({b"a": b"kept"})
def open_files():
    return [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
assert sys.argv[1] in open_files()
"""
    assert [] == fork(parent, "assert sys.argv[1] not in open_files()", str(tmp_path / "kept.sqlite"))


def test_a_child_has_an_environments_pipeline_of_its_own(tmp_path: Path) -> None:
    """``pipeline.query`` and ``pipeline.ingest`` in a worker, after the parent has called them."""
    parent = "from pipeline.build import default_pipeline\nfirst = default_pipeline()"
    assert [] == fork(parent, "assert default_pipeline() is not first", data_dir=tmp_path)


def test_files_that_only_a_spawned_process_can_read(tmp_path: Path) -> None:
    """After the parent has extracted one, kreuzberg would hang in the child: an ingest there says so and ends."""
    (tmp_path / "page.html").write_text("<p>Some text</p>")
    parent = """
from pathlib import Path
from pipeline import ForkedError, Pipeline
from tests.fakes import FakeEmbedder, FakeStore
page = Path(sys.argv[1])
assert Pipeline(embedder=FakeEmbedder(), store=FakeStore()).ingest(page).new == 1
"""
    child = """
try:
    Pipeline(embedder=FakeEmbedder(), store=FakeStore()).ingest(page)
except ForkedError as error:
    print(error, flush=True)
"""
    (said,) = fork(parent, child, str(tmp_path / "page.html"))
    assert "start the workers with 'spawn'" in said
