"""Ingests and reindexes that can be killed at any line: ``python -m tests.killing`` forks a process for each job.

A job is a line of JSON on standard input; what happens is told in lines of JSON on standard output. Forking spares
the second that a new interpreter takes to import everything.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pipeline.ingestion.reindexing
import pipeline.ingestion.run
import pipeline.stores.edge
import pipeline.stores.shards
from pipeline.core import Pipeline
from pipeline.stores.edge import EdgeStore
from tests.fakes import FakeEmbedder

FILES = ("stores/edge.py", "stores/shards.py", "pipeline/files.py", "ingestion/run.py", "ingestion/copies.py")
FUNCTIONS = frozenset(
    {"ensure_ready", "upsert", "delete_documents", "delete_chunks", "delete_versions", "optimize", "close"}
    | {"open", "_create", "use", "wrote", "_write_pending", "write_atomically", "_write", "_prune", "settle"}
)
"""The write path of an ingest: what these files do under these names."""
REINDEX_FILES = ("stores/edge.py", "stores/edge_generations.py", "pipeline/files.py", "ingestion/reindexing.py")
REINDEX_FUNCTIONS = frozenset(
    {"reindex", "catch_up", "_write", "ensure_ready", "upsert", "delete_documents", "frozen", "switch", "_point"}
    | {"write_atomically", "follow"}
)
"""That of a reindex."""
DIMENSION = 32
WHOLE_CHUNKS = 3
"""Longest document that is written in one step."""


def in_memory() -> str | None:
    """A folder whose files are in memory, if there is one with room: to a process that is killed it is like a disk.

    What a disk takes to write is most of the time of tests that open and close many stores.
    """
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() and shutil.disk_usage(shared).free > 2**30 else None


def open_pipeline(store: Path) -> Pipeline:
    """The pipeline that is killed, and that goes on after it."""
    embedder = FakeEmbedder(dimension=DIMENSION)
    made = EdgeStore(store)
    made.whole_chunks = WHOLE_CHUNKS
    return Pipeline(embedder=embedder, store=made, chunk_tokens=32, chunk_overlap=0)


def open_other(store: Path) -> Pipeline:
    """The pipeline that a reindex is for."""
    embedder = FakeEmbedder(dimension=DIMENSION + 8, name="other")
    return Pipeline(embedder=embedder, store=EdgeStore(store), chunk_tokens=48, chunk_overlap=0)


class Steps:
    """Counts the lines of the write path as they are run; at the one that is asked for, calls ``reached``."""

    def __init__(self, line: str | None, occurrence: int, kill: bool, *, reindex: bool = False) -> None:
        self._files = REINDEX_FILES if reindex else FILES
        self._functions = REINDEX_FUNCTIONS if reindex else FUNCTIONS
        self.seen: Counter[str] = Counter()
        self._line, self._occurrence, self._kill = line, occurrence, kill

    def start(self) -> None:
        """From now on, in this thread and in those that it starts."""
        threading.settrace(self._enter)
        sys.settrace(self._enter)

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        return self._step if code.co_name in self._functions and code.co_filename.endswith(self._files) else None

    def _step(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            line = f"{'/'.join(Path(frame.f_code.co_filename).parts[-2:])}:{frame.f_lineno}"
            self.seen[line] += 1
            if line == self._line and self.seen[line] == self._occurrence:
                if self._kill:
                    os.kill(os.getpid(), signal.SIGKILL)
                tell({"reached": line})
        return self._step


def source_until(line: str) -> list[str]:
    """The lines of its file up to one that was seen, that one last."""
    name, number = line.split(":")
    root = Path(pipeline.__file__).parent
    path = root.parent / name if name.startswith("pipeline/") else root / name
    return path.read_text(encoding="utf-8").splitlines()[: int(number)]


def tell(value: dict[str, Any]) -> None:
    """In one write, so that the processes' lines do not mix."""
    os.write(1, json.dumps(value).encode() + b"\n")


def work(job: dict[str, Any]) -> None:
    """Ingests the documents, or without any reindexes, and is killed or tells at the line that is asked for."""
    documents = job.get("documents")
    steps = Steps(job["line"], job["occurrence"], job["kill"], reindex=documents is None)
    steps.start()
    if documents is None:
        with open_other(Path(job["store"])) as rag:
            rag.reindex()
    else:
        with open_pipeline(Path(job["store"])) as rag:
            rag.ingest(documents, prune=True, max_delete=1.0)
    sys.settrace(None)
    if job["line"] is not None:
        signal.pause()  # the signal may come late, but it comes
    tell({"seen": steps.seen})


def main() -> None:
    """Runs jobs until standard input ends."""
    # Small batches make many steps of little data.
    pipeline.ingestion.run._EMBED_CHUNKS = 64
    pipeline.ingestion.reindexing._DOCUMENTS, pipeline.ingestion.reindexing._CHUNKS = 10, 32
    pipeline.stores.edge._WRITE_BATCH = 50
    pipeline.stores.shards.FLUSH_AFTER = 100
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                work(json.loads(line))
            finally:
                os._exit(0)
        tell({"pid": pid})
        _, status = os.waitpid(pid, 0)
        tell({"exit": os.waitstatus_to_exitcode(status)})


if __name__ == "__main__":
    main()
