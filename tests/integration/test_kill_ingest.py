"""``kill -9`` at any moment of an ingest into the real engine: nothing is lost, nothing is there twice.

A moment is a line of the write path (:data:`tests.killing.FUNCTIONS`) and how often it was run before. The process
either kills itself at that line, or says that it is there and is killed from outside while it goes on, which is when
the engine itself is at work: it does not let Python run meanwhile.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import qdrant_edge as edge

from pipeline.core import Pipeline
from pipeline.errors import StoreLockedError
from pipeline.ingestion.ledger import Ledger
from pipeline.stores import shards
from pipeline.stores.edge import EdgeStore
from tests import killing

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")

ROOT = Path(__file__).parents[2]
# Where the engine is at work, or the file system.
ENGINE = (
    "engine.update(",
    "engine.flush()",
    "engine.optimize()",
    "os.fsync(",
    "EdgeShard.load(",
    "EdgeShard.create(",
    "engine.close()",
)


@dataclass(frozen=True)
class Moment:
    line: str
    occurrence: int
    """Which time that the line is run, from 1."""
    outside: bool
    """Killed from outside, shortly after, rather than by itself at the line."""


class Rig:
    """The process that is killed again and again, and two states of some documents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.documents = folder / "documents.jsonl"
        self.old, self.new = folder / "old.jsonl", folder / "new.jsonl"
        old = {f"d{i}": words(i, 5 + 11 * (i % 9)) for i in range(60)}
        changed = {f"d{i}": words(i + 1000, 5 + 11 * (i % 7)) for i in range(0, 60, 2)}
        added = {f"new{i}": words(i + 2000, 40) for i in range(12)}
        for file, texts in ((self.old, old), (self.new, old | changed | added)):
            gone = {"d1", "d2", "d3"} if file == self.new else set()
            lines = [json.dumps({"id": id_, "text": text}) for id_, text in texts.items() if id_ not in gone]
            file.write_text("\n".join(lines))
        self.old_files, self.new_files = folder / "old", folder / "new"
        # Files that are equal, become equal, are so no more, swap their contents, are moved and go.
        contents = {"a": "0 0 1 1 2 3 4 5 5 6 7 8 -", "b": "9 0 1 3 3 2 4 - 5 6 6 - 8"}
        for place, numbers in zip((self.old_files, self.new_files), contents.values(), strict=True):
            place.mkdir()
            for i, number in enumerate(numbers.split()):
                if number != "-":
                    file = place / f"f{i:02}.txt"
                    file.write_text(words(int(number), 20 + 30 * int(number)))
                    os.utime(file, (1e9, 1e9))
        self._host = subprocess.Popen(
            [sys.executable, "-m", "tests.killing"],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, store: Path, state: Path, moment: Moment | None = None) -> dict[str, Any]:
        """Ingests a state of the documents in a process of its own, which is killed at the moment."""
        job = {
            "store": str(store),
            "documents": str(self.put(state)),
            "line": moment and moment.line,
            "occurrence": moment and moment.occurrence,
            "kill": moment is not None and not moment.outside,
        }
        assert self._host.stdin is not None
        assert self._host.stdout is not None
        self._host.stdin.write(json.dumps(job) + "\n")
        self._host.stdin.flush()
        told: dict[str, Any] = {}
        while "exit" not in told:
            told |= json.loads(self._host.stdout.readline())
            if "reached" in told and "killed" not in told:
                os.kill(told["pid"], signal.SIGKILL)
                told["killed"] = True
        return told

    def put(self, state: Path) -> Path:
        """The documents in this state, always in the same place."""
        if state.is_file():
            shutil.copyfile(state, self.documents)
            return self.documents
        shutil.rmtree(self.folder / "files", ignore_errors=True)
        shutil.copytree(state, self.folder / "files")
        return self.folder / "files"

    def close(self) -> None:
        self._host.communicate()


def copy(store: Path, to: Path) -> None:
    """Of the engine's files only what is written in them: most of their 190 MB is room for more."""
    for file in store.rglob("*"):
        if file.is_dir():
            continue
        other = to / file.relative_to(store)
        other.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as source, other.open("wb") as target:
            size, place = file.stat().st_size, 0
            target.truncate(size)
            with suppress(OSError):  # ENXIO: no more data
                while place < size:
                    start = os.lseek(source.fileno(), place, os.SEEK_DATA)
                    place = os.lseek(source.fileno(), start, os.SEEK_HOLE)
                    source.seek(start)
                    target.seek(start)
                    target.write(source.read(place - start))


def words(seed: int, count: int) -> str:
    random_ = random.Random(seed)
    fruit = ["apple", "pear", "plum", "fig", "lime", "kiwi"]
    return " ".join(f"{random_.choice(fruit)} {n % 7}." for n in range(count))


def points(store: Path) -> dict[str, tuple[Any, Any]]:
    """All that is stored, point by point: id -> (payload, vectors)."""
    shard = shards.acquire(store)
    try:
        with shard.use("read") as engine:
            request = edge.ScrollRequest(limit=100_000, with_payload=True, with_vector=True)
            records, _ = engine.scroll(request)
    finally:
        shards.release(shard)
    found = {}
    for record in records:
        assert isinstance(record.vector, dict)
        found[str(record.id)] = record.payload, sorted(map(repr, record.vector.items()))
    return found


def versions(rag: Pipeline) -> dict[str, dict[str, bool]]:
    """Document id, or path of a copy -> content hash -> whether this version is complete."""
    ledger = Ledger(rag.store.ledger())
    assert {} == ledger.duplicates
    return {
        name: {version.content_hash: version.complete for version in ledger.named(name)}
        for name in (*ledger.documents, *ledger.files)
    }


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(dir=killing.in_memory()) as folder:
        made = Rig(Path(folder).resolve())
        yield made
        made.close()


SCENARIOS = {"first": 10, "second": 20, "files": 16}
"""Moments in the ingest that makes a collection, in one that changes, adds and removes documents, and in one of files
of which some are equal."""


@dataclass
class Undisturbed:
    before: dict[str, dict[str, bool]]
    after: dict[str, dict[str, bool]]
    points: dict[str, tuple[Any, Any]]
    start: Path | None
    """Where the collection is that the ingest begins with."""
    state: Path
    seen: dict[str, int]
    """Lines of the write path, and how often each was run."""


@pytest.fixture(scope="module")
def undisturbed(rig: Rig) -> dict[str, Undisturbed]:
    """What each scenario comes to where nobody interferes."""
    found = {}
    before: dict[str, dict[str, bool]] = {}
    start = None
    states = {"first": rig.old, "second": rig.new, "files before": rig.old_files, "files": rig.new_files}
    for scenario, state in states.items():
        if scenario == "files before":
            before, start = {}, None
        store = rig.folder / f"undisturbed {scenario}"
        if start is not None:
            copy(start, store)
        told = rig.run(store, state)
        assert 0 == told["exit"]
        with killing.open_pipeline(store) as rag:
            after = versions(rag)
            found[scenario] = Undisturbed(before, after, points(store), start, state, told["seen"])
        assert all(complete for hashes in after.values() for complete in hashes.values())
        before, start = after, store
    return found


def moments(scenario: str, seen: dict[str, int]) -> list[Moment]:
    """Seeded: half are lines anywhere in the write path, half are calls of the engine or the file system, in turn."""
    random_ = random.Random(scenario)
    lines = sorted(seen)
    inside = [line for line in lines if any(call in killing.source_until(line)[-1] for call in ENGINE)]
    random_.shuffle(inside)
    half = SCENARIOS[scenario] // 2
    return [
        *(Moment(line, random_.randint(1, seen[line]), outside=False) for line in random_.sample(lines, half)),
        *(Moment(line, random_.randint(1, seen[line]), outside=True) for line in islice(cycle(inside), half)),
    ]


@pytest.mark.parametrize(
    ("scenario", "number"), [(name, number) for name, count in SCENARIOS.items() for number in range(count)]
)
def test_killed_at_any_moment(rig: Rig, undisturbed: dict[str, Undisturbed], scenario: str, number: int) -> None:
    """In between each document is old or new; after a rerun each point is that of an undisturbed run."""
    wanted = undisturbed[scenario]
    moment = moments(scenario, wanted.seen)[number]
    store = rig.folder / f"{scenario} {number}"
    if wanted.start is not None:
        copy(wanted.start, store)
    told = rig.run(store, wanted.state, moment)
    code = killing.source_until(moment.line)[-1].strip()
    print(f"{moment.line} {code!r}, time {moment.occurrence} of {wanted.seen[moment.line]}")
    assert -signal.SIGKILL == told["exit"]

    with killing.open_pipeline(store) as rag:
        between = versions(rag)
        for document_id, hashes in wanted.before.items():
            if document_id not in wanted.after and document_id not in between:
                continue  # removed by --prune already
            old_or_new = hashes.keys() | wanted.after.get(document_id, {}).keys()
            assert between[document_id].keys() <= old_or_new
            assert any(between[document_id].values()), document_id
        assert between.keys() <= wanted.before.keys() | wanted.after.keys()
        for version in rag.store.versions():
            assert version.complete or version.count > killing.WHOLE_CHUNKS, version
        for document_id in {version.document_id for version in rag.store.versions()}:
            hashes = {v.content_hash: v.complete for v in rag.store.versions([document_id])}
            if len(hashes) == 1 and all(hashes.values()):
                continue
            hits = rag.query("apple pear 3", top_n=200, top_k=200, where={"document_id": document_id}).hits
            # What a changed file had is still what its copies have.
            copies = {path for v in rag.store.versions([document_id]) if v.complete for path in v.copies}
            assert {hit.document_id for hit in hits} <= {document_id} | copies
            assert any(hashes.values()) == any(hit.document_id == document_id for hit in hits)
            for id_ in {hit.document_id for hit in hits}:
                shown = [hit for hit in hits if hit.document_id == id_]
                assert 1 == len({hit.chunk.content_hash for hit in shown})
                assert len(shown) == len({hit.chunk.index for hit in shown}) == shown[0].chunk.count

        documents = rig.put(wanted.state)
        rag.ingest(documents, prune=True, max_delete=1.0)
        assert rag.verify(documents).clean
        assert wanted.points == points(store)


BUILD = """
import sys
from pathlib import Path
import numpy as np
from pipeline.stores.edge import EdgeStore
from pipeline.types import Chunk, Fingerprint
store = EdgeStore(Path(sys.argv[1]))
store.ensure_ready(Fingerprint("fake", 2048, 256, 32, "test"))
vectors = np.random.default_rng(1).standard_normal((2600, 2048)).astype(np.float32)
store.upsert([Chunk(f"doc-{i}", "v1", 0, 1, f"text {i}", "", "s") for i in range(2600)], vectors)
print("written", flush=True)
store.optimize(lambda message: print(message, flush=True))
"""


@pytest.mark.parametrize("builder", ["killed too", "left to finish"])
def test_killed_while_the_index_is_built(tmp_path: Path, builder: str) -> None:
    """The index is built by a process of its own, which may outlive the one that was killed: nothing is lost."""
    command = [sys.executable, "-c", BUILD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "written" == process.stdout.readline().strip()
        assert process.stdout.readline().startswith("building the index")
        holder = process.pid
        while holder == process.pid:  # until the note names the builder
            with suppress(ValueError, OSError):
                holder = json.loads((tmp_path / "holder.json").read_text())["pid"]
        process.kill()
    if builder == "killed too":
        os.kill(holder, signal.SIGKILL)
    store = EdgeStore(tmp_path)
    while True:
        with suppress(StoreLockedError):
            assert 2600 == store.count().chunks
            break
    found = [version for version in store.versions() if version.complete]
    assert 2600 == len(found)
    store.optimize()
    assert 1 == len(store.search("text 7", None, limit=1, mode="sparse"))
    store.close()
