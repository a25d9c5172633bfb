"""The folder that a training writes to: whose it is, how far it is, and that only one process works in it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.errors import SettingsError

HUGGING_FACE = "huggingface"
"""The subfolder with the model as torch trained it, before it was made one for the engine."""
SPLIT = "split.json"
"""Which queries were trained on, chosen by and reported on; it stays, as what was trained on does."""
_STATE = "training.json"
_LOCK = ".lock"
_DATA = ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "qrels/test.tsv")


class TrainingFolder:
    """``training.json`` has the arguments and, at the end, the outcome; ``work`` what is needed until then."""

    def __init__(self, path: Path, arguments: Mapping[str, Any]) -> None:
        self.path = path
        self.work = path / "work"
        self.arguments = dict(arguments)
        self.outcome: dict[str, Any] | None = None

    def finish(self, outcome: dict[str, Any]) -> None:
        """Keeps the outcome, and removes checkpoints and scores; what was trained on stays, and the split."""
        self.outcome = outcome
        self._write()
        for path in self.work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.suffix != ".jsonl" and path.name != SPLIT:
                path.unlink()

    def _claim(self) -> None:
        try:
            state = json.loads((self.path / _STATE).read_text(encoding="utf-8"))
            theirs, self.outcome = state["arguments"], state["outcome"]
        except FileNotFoundError:
            others = [entry.name for entry in self.path.iterdir() if entry.name not in (_LOCK, f"{_STATE}.new")]
            if others:
                raise SettingsError(
                    f"--out {self.path} holds something else ({others[0]}): name a new folder, or an empty one"
                ) from None
            self._write()
        except (ValueError, KeyError, TypeError) as error:
            raise SettingsError(f"{self.path / _STATE} is damaged ({error}): name another folder for --out") from error
        else:
            mine = json.loads(json.dumps(self.arguments))
            other = [name for name in mine if mine[name] != theirs.get(name)]
            if other:
                listed = "; ".join(f"{name}: there {theirs.get(name)!r}, now {mine[name]!r}" for name in other)
                raise SettingsError(
                    f"--out {self.path} holds a training with other arguments or data ({listed}): repeat those, or "
                    "name a new folder"
                )
        self.work.mkdir(exist_ok=True)

    def _write(self) -> None:
        write_json(self.path / _STATE, {"arguments": self.arguments, "outcome": self.outcome})


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    new.replace(path)


@contextmanager
def training_folder(path: Path, arguments: Mapping[str, Any]) -> Iterator[TrainingFolder]:
    """The folder, made if it is new.

    Raises:
        SettingsError: it holds something else, or a training with other arguments, or another process works in it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--out {path} cannot be made: {error.strerror}") from error
    try:
        with FileLock(path / _LOCK, timeout=0):
            folder = TrainingFolder(path, arguments)
            folder._claim()
            yield folder
    except Timeout as error:
        raise SettingsError(f"another process trains in {path}: wait for it, or name another folder") from error


def data_hash(path: Path) -> str:
    """sha256 of what is read of one ``--data``, names and contents; of what is not there, nothing."""
    digest = hashlib.sha256()
    files = [path / name for name in _DATA] if path.is_dir() else [path]
    for file in files:
        if file.is_file():
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode("utf-8", "backslashreplace"))
            with file.open("rb") as opened:
                while block := opened.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()
