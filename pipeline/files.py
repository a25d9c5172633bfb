"""Names of files, and files that are there as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.errors import SettingsError


def as_path(name: str | os.PathLike[str]) -> Path:
    """The path of this name, which an environment variable that is not set may have left empty.

    Raises:
        SettingsError: it is; a path of it would be the folder that the program runs in.
    """
    if not os.fspath(name):
        raise SettingsError("a path is empty: name a file or folder, or . for the folder that this runs in")
    return Path(name)


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that a reader, even after a crash, sees all of it or what was there before."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
