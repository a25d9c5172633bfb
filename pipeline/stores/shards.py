"""The open Qdrant Edge engines of this process: one a directory, shared by all who use it.

What the engine (0.9) does, and what follows from it here:

- It holds Python's global lock in every call. So calls are serial anyway, and a plain mutex around them costs
  nothing; what takes minutes (:meth:`OpenShard.optimize`) runs in a process of its own, or the program would freeze.
- An update is in the write-ahead log when it returns and survives a ``kill -9``. The log is read again from the last
  flush when the shard is opened (1.7 s for 30,000 chunks), so there is a flush every thousand chunks (10-40 ms).
- A full disk kills the process (SIGBUS while writing to a mapped file), so free space is looked at before writing.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import qdrant_edge as edge

from pipeline.errors import StoreError
from pipeline.files import write_atomically
from pipeline.forking import begin_anew, keep_for_good
from pipeline.stores.locking import DirectoryLock

log = logging.getLogger(__name__)

FLUSH_AFTER = 1_000
"""Chunks written between two flushes."""
MIN_FREE_BYTES = 100 * 2**20
"""Free disk space that no write goes below: the engine takes it in pieces of 32 MiB."""

_FAILED = "Service runtime error: "
"""What the engine's own failures begin with, unless they are panics: of damaged files comes one or the other. What it
refuses, as a vector of another length, has no such words and says nothing of the files."""

_OPTIMIZE = """
import sys
sys.path.insert(0, sys.argv[2])
from qdrant_edge import EdgeShard
shard = EdgeShard.load(sys.argv[1])
shard.optimize()
shard.close()
"""


class OpenShard:
    """An open engine with the lock on its directory. Made by :func:`acquire`, given back with :func:`release`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.users = 0
        self.unindexed = 0
        """Chunks written since the last optimization, so at most so many are outside the HNSW index."""
        self.deleted = 0
        """Chunks deleted since the last optimization: the index still has them."""
        self.again_from = 0
        """Chunks outside the index from which on it is to be built: more than before where that has failed."""
        self.writing = threading.RLock()
        """Taken before the engine by who writes, so that a switch to another collection can wait for the last write."""
        self._pid = os.getpid()
        self._files = directory / "shard"
        self._pending = directory / "pending.json"
        self._lock = DirectoryLock(directory)
        self._mutex = threading.RLock()
        self._engine: edge.EdgeShard | None = None
        self._open = False
        self._unflushed = 0

    @property
    def inherited(self) -> bool:
        """Whether this is a forked child of the process that opened it."""
        return self._pid != os.getpid()

    def open(self, config: edge.EdgeConfig | None) -> None:
        """Locks the directory and opens the engine; with ``config`` makes it if it is not there yet."""
        if config is not None:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(f"cannot make {self.directory} ({error.strerror}): set RAG_DATA_DIR") from error
        self._lock.acquire()
        try:
            with self._explained("open"):
                if config is not None and not (self.directory / "fingerprint.json").exists():
                    self._create(config)
                self._engine = edge.EdgeShard.load(str(self._files))
            self._read_pending(self._engine)
            self._lock.name_holder()
            self._open = True
        finally:
            if not self._open:
                self._lock.release()

    def _create(self, config: edge.EdgeConfig) -> None:
        self.check_space(0)
        # A crash may have left one without a fingerprint: it is empty, and may have been made for another model.
        if self._files.exists():
            self._refuse_if_filled()
            shutil.rmtree(self._files)
        self._pending.unlink(missing_ok=True)
        # Under another name first: a crash must not leave half a shard behind.
        unfinished = self.directory / "shard.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        edge.EdgeShard.create(str(unfinished), config).close()
        unfinished.rename(self._files)

    def _refuse_if_filled(self) -> None:
        with closing(edge.EdgeShard.load(str(self._files))) as engine:
            points = engine.count(edge.CountRequest(exact=True))
        if points:
            raise StoreError(
                f"{self.directory} holds {points} chunks, but its fingerprint.json is gone: put it back, or move the "
                "folder away to begin anew"
            )

    @contextmanager
    def use(self, doing: str) -> Iterator[edge.EdgeShard]:
        """The engine, for this thread alone. What it raises becomes a StoreError that tells what was being done."""
        if self.inherited:
            raise self._lock.locked()  # the files belong to the parent
        with self._mutex, self._explained(doing):
            if not self._open:
                raise StoreError(f"the embedded store in {self.directory} was closed")
            if self._engine is None:  # opening it again failed after an optimization
                self._engine = edge.EdgeShard.load(str(self._files))
            yield self._engine

    def config(self) -> dict[str, Any]:
        """The engine's configuration, as it keeps it."""
        config: dict[str, Any] = json.loads((self._files / "edge_config.json").read_text(encoding="utf-8"))
        return config

    def reconfigure(self, config: edge.EdgeConfig) -> None:
        """Gives the engine another configuration. What is stored follows at the next optimization, which is now due."""
        with self.use("configure") as engine:
            # First: after a crash in between nothing else tells that the index is not yet as configured.
            self.unindexed = engine.info().points_count
            self._write_pending()
            engine.close()
            self._engine = None
            self._engine = edge.EdgeShard.load(str(self._files), config)

    def wrote(self, engine: edge.EdgeShard, *, written: int = 0, deleted: int = 0) -> None:
        """Counts chunks written and deleted, and flushes now and then."""
        self._unflushed += written + deleted
        self.deleted += deleted
        self.unindexed += written
        if self._unflushed >= FLUSH_AFTER:
            engine.flush()
            self._unflushed = 0
            self._write_pending()

    def _read_pending(self, engine: edge.EdgeShard) -> None:
        """The engine does not tell what is outside its index, so it is counted, over many processes if need be."""
        try:
            pending = json.loads(self._pending.read_text(encoding="utf-8"))
            self.unindexed, self.deleted = int(pending["written"]), int(pending["deleted"])
        except (OSError, ValueError, KeyError, TypeError):
            self.unindexed = engine.info().points_count

    def _write_pending(self) -> None:
        with suppress(OSError):  # a wrong count costs speed only
            write_atomically(self._pending, json.dumps({"written": self.unindexed, "deleted": self.deleted}))

    def check_space(self, needed: int) -> None:
        """Refuses to write ``needed`` bytes onto a disk that is nearly full.

        Raises:
            StoreError: says how much is free and how much is needed.
        """
        free = shutil.disk_usage(self.directory).free
        if free < needed + MIN_FREE_BYTES:
            raise StoreError(
                f"the disk of {self.directory} is nearly full: {free >> 20} MiB free, "
                f"{(needed + MIN_FREE_BYTES) >> 20} MiB needed; make room or set RAG_DATA_DIR. What was written before "
                "is safe"
            )

    def optimize(self) -> None:
        """Builds what index is due. Searches wait; the rest of the program goes on.

        A failure is only logged: the chunks are safe, and searches work without it.
        """
        with self.use("optimize") as engine:
            self.check_space(
                sum(file.stat().st_size for file in (self._files / "segments").rglob("*") if file.is_file())
            )
            engine.close()
            self._engine = None
            try:
                try:
                    failure = self._optimize_elsewhere()
                except OSError as error:  # no memory for another process, no file descriptors
                    failure = str(error)
                if failure is None:
                    self.unindexed, self.deleted, self.again_from, self._unflushed = 0, 0, 0, 0
                    self._write_pending()
                else:
                    # Not with every write, as what is missing may stay so.
                    self.again_from = 2 * self.unindexed + 1
                    log.warning(
                        "building the index of %s failed (%s); the chunks are safe and searches work, but slower",
                        self.directory,
                        failure,
                    )
            finally:
                self._engine = edge.EdgeShard.load(str(self._files))
                self._lock.name_holder()

    def _optimize_elsewhere(self) -> str | None:
        """Why it failed; None if it did not."""
        python = _python()
        if python is None:
            shard = edge.EdgeShard.load(str(self._files))
            shard.optimize()
            shard.close()
            return None
        packages = str(Path(edge.__file__).parents[1])
        command = [python, "-I", "-c", _OPTIMIZE, str(self._files), packages]
        with (
            # Should this process be killed, the child goes on replacing segments: nobody may open them meanwhile.
            self._lock.lent() as descriptors,
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=descriptors,
            ) as child,
        ):
            try:
                self._lock.name_holder(child.pid, [python, "(building the index of", f"{self.directory})"])
                _, stderr = child.communicate()
            except BaseException:
                child.kill()  # safe: the engine replaces segments only when new ones are complete
                raise
        if child.returncode == 0:
            return None
        last = stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        return last or f"exit code {child.returncode}"

    def close(self) -> None:
        """Closes the engine and frees the directory for other processes."""
        with self._mutex:
            engine, self._engine, self._open = self._engine, None, False
            try:
                if engine is not None:
                    self._write_pending()
                    with self._explained("close"):
                        engine.close()
            finally:
                self._lock.release()

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (StoreError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # a panic of the engine is no Exception
            if "WouldBlock" in str(error):
                raise self._lock.locked() from error
            detail = str(error) or type(error).__name__
            message = f"could not {doing} the embedded store in {self.directory}: {detail.removeprefix(_FAILED)}"
            if not isinstance(error, Exception) or detail.startswith(_FAILED):
                message += (
                    ". If this stays so after a new start, its files are damaged: bring them back from a backup, or "
                    "delete the directory and ingest again"
                )
            raise StoreError(message) from error


def _python() -> str | None:
    """A Python to start; None inside another program that comes without one.

    There, as in uWSGI, ``sys.executable`` may be that program.
    """
    if getattr(sys, "frozen", False):
        return None
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    places = [Path(sys.executable or ""), *(Path(prefix, "bin", name) for prefix in (sys.prefix, sys.base_prefix))]
    known = (place for place in places if place.name.lower().startswith(("python", "pypy")) and place.is_file())
    return next(map(str, known), None)


_shards: dict[Path, OpenShard] = {}
# Reentrant, because the garbage collector may finalise a reader that was given up, and so release its shard, in the
# middle of what the same thread does under it.
_registry = threading.RLock()
_busy = False
_late: list[OpenShard] = []
"""Released in the middle of something, and given back at its end."""


def acquire(directory: Path, config: edge.EdgeConfig | None = None) -> OpenShard:
    """The open shard of a directory: the one that this process has already, or a newly opened one.

    With ``config`` the shard is made where there is none.

    Raises:
        StoreLockedError: another process has it.
        StoreError: it cannot be opened.
    """
    directory = directory.resolve()
    with _registry, _undisturbed():
        shard = _shards.get(directory)
        if shard is None:
            shard = OpenShard(directory)
            shard.open(config)
            _shards[directory] = shard
        shard.users += 1
        return shard


def release(shard: OpenShard) -> None:
    """Gives a shard back; the last user closes it. In a forked child it is the parent's, who closes it."""
    if shard.inherited:
        return
    with _registry:
        if _busy:
            _late.append(shard)
            return
        with _undisturbed():
            _give_back(shard)


def _give_back(shard: OpenShard) -> None:
    shard.users -= 1
    if shard.users == 0:
        del _shards[shard.directory]
        shard.close()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """What changes the shards and their users, under the lock: what is released inside is given back after it."""
    global _busy
    _busy = True
    try:
        yield
    finally:
        try:
            while _late:
                _give_back_late(_late.pop())
        finally:
            _busy = False


def _give_back_late(shard: OpenShard) -> None:
    try:
        _give_back(shard)
    except StoreError as error:  # it is not about the shard that is asked for
        log.warning("%s", error)


def _forget_in_child() -> None:
    """After a fork the shards are the parent's: a child that opens one is told that the parent holds it."""
    global _registry, _busy
    for shard in _shards.values():
        # An engine that is destroyed flushes into the parent's files.
        keep_for_good(shard)
    _registry, _busy = threading.RLock(), False
    _shards.clear()
    _late.clear()


begin_anew(_forget_in_child)
