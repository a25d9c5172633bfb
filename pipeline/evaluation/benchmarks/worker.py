"""The measuring side of the protocol: a system in a process of its own, asked by JSON lines."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.errors import RagError


class WorkerError(RagError):
    """A system failed, or its process ended."""


class Worker:
    """A running system. ``configuration`` is what its script gets first; its stderr goes to the file ``log``."""

    def __init__(
        self, command: Sequence[str], configuration: Mapping[str, Any], environment: Mapping[str, str], log: Path
    ) -> None:
        self._log = log
        self._file = log.open("ab")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._file,
            env=dict(environment),
            cwd=log.parent,  # no .env file of the user's
            text=True,
            encoding="utf-8",
        )
        try:
            self._exchange(configuration)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """One request and its answer.

        Raises:
            WorkerError: the system raised an error, or its process ended.
        """
        return self._exchange({"op": op, **arguments})

    def close(self) -> None:
        """Ends the process: it sees the end of its input, and is killed if that does not end it."""
        if self._process.stdin and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._file.close()

    def _exchange(self, message: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"the process of this system ended; its log is {self._log}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{answer['error']} (log: {self._log})")
        return answer
