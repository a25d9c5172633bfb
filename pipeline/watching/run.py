"""Updates of a collection: one at the start, and one whenever a file changed.

A notification only says that it is time to look. What an update does follows from the files that are there, compared
with those that were read before, so that a renamed folder, an editor that writes a new file and renames it, or a folder
that is taken away and comes back need no rules of their own. Before each update the watch is set up anew: a watch ends
unnoticed with the file or folder that it was set on, and what changes during the update is in the new one.

The store is open during an update only, so that other processes can query the embedded one in between.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from pipeline import deadline
from pipeline.core import Pipeline
from pipeline.errors import FingerprintError, RagError, SettingsError, StoreLockedError, StoreUnavailableError
from pipeline.ingestion.loaders import NOT_READ, is_there, left_out, real_source
from pipeline.ingestion.reading import passed_over
from pipeline.ingestion.run import Progress
from pipeline.interfaces import Store
from pipeline.reports import Failure, IngestReport, NoText
from pipeline.watching import DEBOUNCE_MS
from pipeline.watching.files import EVERYTHING, KnownFiles, places, scan

if TYPE_CHECKING:
    from watchfiles.main import FileChange

_TICK_MS = 200
"""How often paths are looked at that cannot be watched: those that are away, and what stands in their place."""
_LOCKED_RETRY_S = 1.0
_RETRY_S = 30.0
_SECOND_LOOK_S = 2.5
"""When the files are looked at once more after an update: polling compares whole seconds and misses a second change
within one, and a file may have changed just before it was read."""


Showing = Callable[[], AbstractContextManager[Callable[[Progress], None]]]
"""Shows the progress of one update."""


class _StoppedError(Exception):
    """Ends an ingest between two of its steps."""


def watch(
    rag: Pipeline,
    open_store: Callable[[], Store],
    paths: Sequence[Path],
    *,
    stop: threading.Event,
    max_delete: float = 0.2,
    debounce_ms: int = DEBOUNCE_MS,
    ignored: Iterable[Path] = (),
    showing: Showing | None = None,
) -> Iterator[IngestReport | RagError]:
    """Keeps a collection in step with files and folders until ``stop`` is set; gives what each update did.

    An error means that the update is tried again: at the next change or after a while; when another process holds the
    store, as soon as it is free. The same error is given once. ``stop`` ends an update that is under way between two
    of its steps; the next start goes on there. ``rag`` gets the store that ``open_store`` makes for each update.
    ``debounce_ms`` is the longest time for which changes are gathered. ``ignored`` are folders that are not read.

    Raises:
        SettingsError: a path does not exist, or cannot be watched.
        FingerprintError: the collection was made with another model or other chunking, perhaps in the meantime.
        RagError: the first update failed, and not because the store is away or in use.
    """
    for path in paths:
        if not is_there(path):
            raise SettingsError(f"no such file or folder: {path}")
    updates = _Updates(rag, open_store, paths, stop, max_delete, ignored, showing)
    return _outcomes(updates, paths, stop, debounce_ms)


def _outcomes(
    updates: _Updates, paths: Sequence[Path], stop: threading.Event, debounce_ms: int
) -> Iterator[IngestReport | RagError]:
    last: IngestReport | None = None
    said, woken, failed, waiting = "", True, False, False
    while not stop.is_set():
        before = places(paths)
        with closing(_notices(paths, updates.ignored, stop, debounce_ms)) as notices:
            look_at: float | None = None
            outcome: IngestReport | RagError | None
            try:
                next(notices, None)  # from here on no change is missed
                outcome = report = updates.run()
            except _StoppedError:
                return
            except RagError as error:
                if stop.is_set():
                    return
                if not _may_pass(error, first=last is None):
                    raise
                locked = isinstance(error, StoreLockedError)
                look_at = time.monotonic() + (_LOCKED_RETRY_S if locked else _RETRY_S)
                # A query is done in a moment: who holds the store is said if it is still so at the next try.
                quiet = str(error) == said or (locked and not waiting)
                outcome, said = (None, said) if quiet else (error, str(error))
                failed, waiting = True, locked
            else:
                if report is not None:
                    known = [] if woken or failed or last is None else last.failures
                    outcome = None if last is not None and _says_nothing(report, known) else report
                    last = report
                if woken or failed or updates.unsettled:
                    look_at = time.monotonic() + _SECOND_LOOK_S
                said, failed, waiting = "", False, False
            if outcome is not None:
                yield outcome
            for noticed in chain(notices, _ticks(stop)):
                woken = bool(noticed) or places(paths) != before
                if woken or (look_at is not None and time.monotonic() >= look_at):
                    break


def _may_pass(error: RagError, *, first: bool) -> bool:
    """Whether the same update may go well later. Settings are known to be right once an update did."""
    if first:
        return isinstance(error, StoreLockedError | StoreUnavailableError)
    return not isinstance(error, FingerprintError)


def _says_nothing(report: IngestReport, known: Sequence[Failure]) -> bool:
    """Whether nothing was done, and nothing failed but what is known to fail."""
    done = report.new + report.changed + report.deleted + report.chunks_written + report.chunks_deleted
    return not done and all(failure in known for failure in report.failures)


class _Updates:
    """Brings the collection up to date, with as little reading as the files and the collection allow."""

    def __init__(
        self,
        rag: Pipeline,
        open_store: Callable[[], Store],
        paths: Sequence[Path],
        stop: threading.Event,
        max_delete: float,
        ignored: Iterable[Path],
        showing: Showing | None,
    ) -> None:
        roots = set(map(real_source, paths))
        # In one of the paths: a folder that was asked for by its name is read.
        self.ignored = frozenset(passed_over(map(real_source, ignored), roots))
        self._rag, self._open_store, self._paths, self._stop = rag, open_store, paths, stop
        self._max_delete = max_delete
        self._showing = showing or (lambda: nullcontext(lambda _: None))
        self._known = KnownFiles()
        self._left = ""
        """Digest of the collection after the last update."""

    @property
    def unsettled(self) -> bool:
        """Whether some files have to be looked at once more."""
        return self._known.unsettled

    def run(self) -> IngestReport | None:
        """One update; None if there is nothing to do."""
        there = [path for path in self._paths if is_there(path)]
        found = scan(there, self.ignored)
        plan = self._known.plan(found)
        if plan is None:
            return None
        report = IngestReport()
        if there:
            self._rag.store.close()
            with closing(self._open_store()) as store, self._showing() as show, self._until_stopped():
                self._rag.store = store
                if plan.unread and store.digest() != self._left:
                    plan = EVERYTHING  # somebody else changed the collection: it may lack what was read before
                report = self._rag.ingest(
                    there,
                    prune=plan.prune,
                    max_delete=self._max_delete,
                    unread=plan.unread | self.ignored,
                    progress=partial(self._step, show),
                )
                self._left = store.digest()
        failed = bool(report.failures)
        away = [path for path in self._paths if path not in there]
        gone = [Failure(str(path), "is not there; what is stored of it stays until it is back") for path in away]
        report = replace(report, failures=[*report.failures, *gone])
        missed = {failure.source for failure in report.failures if failure.error.startswith(NOT_READ)}
        if failed:  # what is stored of these could perhaps not be removed
            missed.update(file.source for file in (*report.failures, *report.skipped) if isinstance(file, NoText))
        self._known.learn(found, doubtful=bool(report.failures), missed=missed)
        return report

    @contextmanager
    def _until_stopped(self) -> Iterator[None]:
        """Nor does it go on trying then where a server is away."""
        try:
            with deadline.unless(self._stop):
                yield
        except deadline.GivenUpError:
            raise _StoppedError from None

    def _step(self, show: Callable[[Progress], None], progress: Progress) -> None:
        if self._stop.is_set():
            raise _StoppedError
        show(progress)


def _notices(
    paths: Sequence[Path], ignored: Iterable[str], stop: threading.Event, debounce_ms: int
) -> Generator[set[FileChange], None, None]:
    """Sets of changes, gathered, and an empty set whenever there was none for a while; ends with ``stop``."""
    import watchfiles

    roots = [real_source(path) for path in paths if is_there(path)]
    try:
        yield from watchfiles.watch(
            *roots,
            watch_filter=lambda _, path: concerns(path, roots, ignored),
            debounce=debounce_ms,
            rust_timeout=_TICK_MS,
            yield_on_timeout=True,
            stop_event=stop,
            ignore_permission_denied=True,
        )
    except FileNotFoundError:
        return  # gone since it was looked for
    except (OSError, RuntimeError) as error:
        raise SettingsError(
            f"cannot watch {', '.join(map(str, paths))} ({error}): on Linux fs.inotify.max_user_watches and "
            "max_user_instances limit it; with WATCHFILES_FORCE_POLLING=1 no watches are needed"
        ) from error


def _ticks(stop: threading.Event) -> Iterator[set[FileChange]]:
    """What is left where nothing can be watched."""
    while not stop.is_set():
        time.sleep(_TICK_MS / 1e3)
        yield set()


def concerns(path: str, roots: Iterable[str], ignored: Iterable[str]) -> bool:
    """Whether a change at this path may change what an ingest of the roots reads."""
    source = PurePath(path)
    if any(source.is_relative_to(place) for place in ignored):
        return False
    below = [source.relative_to(root).parts for root in roots if source.is_relative_to(root)]
    return not below or any(not any(map(left_out, parts)) for parts in below)
