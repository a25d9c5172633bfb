"""Which files are as they were when they were last read, by their times and sizes, as make, git and rsync tell it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from pipeline.ingestion.changes import is_within
from pipeline.ingestion.loaders import find_files, is_lines, real_source

Signature = tuple[int, ...]
"""Device, inode, size in bytes, and times of modification and of the inode's change in ns."""

_COARSE_NS = 2_000_000_000
_FINE_NS = 100_000_000
"""A file may change again within one tick of its file system's clock and look the same. A tick takes 2 s on FAT, 1 s on
some network folders, and some ms where times have fractions of a second."""

_NONE: Signature = (-1,)
"""Of no file."""


@dataclass(frozen=True, slots=True)
class Scan:
    """The files that are there."""

    files: Mapping[str, Signature]
    """By source."""
    taken_ns: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What an update has to do."""

    unread: frozenset[str]
    """Sources that are as they were."""
    prune: bool
    """Whether something may be stored that is gone."""


EVERYTHING = Plan(frozenset(), prune=True)


def scan(paths: Sequence[Path], ignored: Set[str] = frozenset()) -> Scan:
    """The files that an ingest of these paths would read, without those in ``ignored`` folders.

    Raises:
        SettingsError: a path does not exist.
    """
    taken = time.time_ns()
    files = ((real_source(file), file) for file in find_files(paths))
    return Scan({source: _signature(file) for source, file in files if not is_within(source, ignored)}, taken)


def _signature(file: Path) -> Signature:
    try:
        status = file.stat()
    except OSError:
        try:
            status = file.lstat()  # a link that leads nowhere
        except OSError:
            return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class KnownFiles:
    """The files as the last update that went well has read them."""

    def __init__(self) -> None:
        self._files: dict[str, Signature | None] = {}
        """None where a later change might not show."""
        self._doubtful = True
        """Whether something may be stored that is gone, although no file went."""

    def plan(self, found: Scan) -> Plan | None:
        """What has to be done now; None if nothing has."""
        files = found.files
        same = {source for source, signature in files.items() if self._files.get(source) == signature}
        lines = {source for source in {*files, *self._files} if is_lines(Path(source))}
        changed_lines = not lines <= same
        if changed_lines:  # of documents in several such files with one id the last counts, so all have to be read
            same -= lines
        prune = self._doubtful or changed_lines or not self._files.keys() <= files.keys()
        if not prune and len(same) == len(files):
            return None
        return Plan(frozenset(same), prune)

    def learn(self, found: Scan, *, doubtful: bool, missed: Set[str] = frozenset()) -> None:
        """These were read, but for those ``missed``, which the next update tries again.

        ``doubtful``: some could not be taken in, or what is gone could not be removed.
        """
        self._files = {
            source: _NONE if source in missed else signature if _is_settled(signature, found.taken_ns) else None
            for source, signature in found.files.items()
        }
        self._doubtful = doubtful

    @property
    def unsettled(self) -> bool:
        """Whether a file changed just before it was read, so that it has to be looked at once more."""
        return None in self._files.values()


def _is_settled(signature: Signature, taken_ns: int) -> bool:
    """Whether any later change will show. A time that is ahead of ours is another clock's, or made up."""
    return all(
        abs(taken_ns - time_ns) >= (_FINE_NS if time_ns % 1_000_000_000 else _COARSE_NS) for time_ns in signature[3:]
    )


def places(paths: Sequence[Path]) -> list[tuple[int, int] | None]:
    """Device and inode of what is at each path; None for nothing. Others after a mount, a swap or a new file there."""
    found: list[tuple[int, int] | None] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_dev, status.st_ino))
    return found
