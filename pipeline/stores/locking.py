"""One process at a time on an embedded store, and the others are told which one."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.errors import StoreError, StoreLockedError
from pipeline.files import write_atomically

if sys.platform != "win32":
    import fcntl


class DirectoryLock:
    """An exclusive lock on a directory, held until :meth:`release` or the end of the process, however it ends.

    The operating system frees the lock (``flock``) when its holder dies, so there is nothing to clean up after a
    ``kill -9``. Who holds it is written into a file of its own, which is only for messages and never believed blindly.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # The lock belongs to the process, not to the thread that happened to ask first.
        self._lock = FileLock(directory / "lock", timeout=0, thread_local=False, is_singleton=False)
        self._holder = directory / "holder.json"
        self._loan = directory / "builder.lock"
        self._named = False

    def acquire(self) -> None:
        """Takes the lock at once or not at all.

        Raises:
            StoreLockedError: another process has it; names its id and command line.
            StoreError: the directory cannot be written to.
        """
        try:
            self._lock.acquire()
            if self._lent():
                self._lock.release()
                raise self.locked()
        except Timeout as error:
            raise self.locked() from error
        except OSError as error:
            raise StoreError(
                f"cannot write in {self.directory} ({error.strerror or error}): the embedded store needs a directory "
                "that this user may write to; change its owner or set RAG_DATA_DIR"
            ) from error

    @contextmanager
    def lent(self) -> Iterator[tuple[int, ...]]:
        """File descriptors for a child process: while it lives the directory is in use, even if this process is killed.

        A lock of its own, because ``flock`` belongs to an open file, which the child inherits, and not to a process.
        """
        if sys.platform == "win32":
            yield ()
            return
        descriptor = os.open(self._loan, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield (descriptor,)
        finally:
            os.close(descriptor)

    def _lent(self) -> bool:
        """Whether a child of a process that died is still at work."""
        if sys.platform == "win32" or not self._loan.exists():
            return False
        descriptor = os.open(self._loan, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def name_holder(self, pid: int | None = None, command: Sequence[str] | None = None) -> None:
        """Notes who is at work, by default this process, for the message that another process gives."""
        holder = {
            "pid": pid or os.getpid(),
            "host": socket.gethostname(),
            "command": " ".join(command or sys.orig_argv),
        }
        with suppress(OSError):  # a full disk must not keep anyone from searching
            write_atomically(self._holder, json.dumps(holder))
            self._named = True

    def release(self) -> None:
        """Gives the lock back; the directory may be gone by now."""
        if self._named:
            with suppress(OSError):
                self._holder.unlink(missing_ok=True)
            self._named = False
        self._lock.release()

    def locked(self) -> StoreLockedError:
        """The error that says who holds the store and what to do."""
        return StoreLockedError(
            f"the embedded store in {self.directory} is in use by {self._describe_holder()}. Wait until it is done or "
            "stop it; for several programs at once use a Qdrant server: set RAG_QDRANT_URL"
        )

    def _describe_holder(self) -> str:
        holder = self._read_holder()
        if holder is None:
            return "another process"
        who = f"process {holder['pid']} ({str(holder['command'])[:200]})"
        if holder["host"] != socket.gethostname():
            return f"{who} on {holder['host']}"
        # The file of a holder that was killed stays until the next one has written its own.
        return who if alive(holder["pid"]) else "another process"

    def _read_holder(self) -> dict[str, Any] | None:
        try:
            holder = json.loads(self._holder.read_text(encoding="utf-8"))
            return {"pid": int(holder["pid"]), "host": holder["host"], "command": holder["command"]}
        except (OSError, ValueError, KeyError, TypeError):
            return None


def alive(pid: int) -> bool:
    """Whether there is such a process on this machine; where that cannot be told, True."""
    if sys.platform == "win32":  # there, signal 0 is no question but a key press
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
