"""``rag watch``: arguments in, a line an update out.

The imports that cost time are inside the command.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.console import print_failure, print_json, sayer, stderr
from pipeline.files import as_path
from pipeline.watching import DEBOUNCE_MS

if TYPE_CHECKING:
    from pipeline.reports import IngestReport


def watch(
    paths: Annotated[
        list[Path], typer.Argument(parser=as_path, metavar="PATH", help="Files and folders, as for rag ingest.")
    ],
    max_delete: Annotated[
        float,
        typer.Option(
            metavar="SHARE", min=0.0, max=1.0, help="Largest share of the documents there that one update removes."
        ),
    ] = 0.2,
    debounce_ms: Annotated[
        int, typer.Option(metavar="MS", min=1, help="Longest time that changes are gathered before an update.")
    ] = DEBOUNCE_MS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line for each update.")] = False,
) -> None:
    """Keep the collection in step with files and folders.

    That goes on until Ctrl-C. First one ingest with --prune. Then after each change the files that changed are read and
    those that are gone are removed; files are told apart by times and sizes, and JSONL files are read all together. The
    embedded store is open during an update only, so rag query works in between. Network folders may need
    WATCHFILES_FORCE_POLLING=1.
    """
    with stopped_by_signals() as stop:  # before what takes a second to import, so that it ends in order from the start
        from pipeline.build import build_store, own_folders
        from pipeline.core import Pipeline
        from pipeline.display import ingest_progress
        from pipeline.errors import RagError
        from pipeline.settings import Settings
        from pipeline.watching import run

        say = sayer(stderr())
        settings = Settings()
        with Pipeline.from_settings(settings, rerank=False) as rag:
            outcomes = run.watch(
                rag,
                partial(build_store, settings),
                paths,
                stop=stop,
                max_delete=max_delete,
                debounce_ms=debounce_ms,
                ignored=own_folders(settings),
                showing=partial(ingest_progress, stderr()),
            )
            say(f"rag: watching {', '.join(map(str, paths))} (Ctrl-C to stop)")
            for outcome in outcomes:
                if isinstance(outcome, RagError):
                    say(f"rag: not updated, will try again: {' '.join(str(outcome).split())}")
                    continue
                for line in described(outcome):
                    say(f"rag: {line}")
                if as_json:
                    print_json(outcome.to_dict(exact=True))
                    if print_failure():
                        break
    say("rag: stopped watching")


def described(report: IngestReport) -> list[str]:
    """What is to be said of an update, what it did last."""
    from pipeline.display import describe_skipped

    notes = [f"note: {warning}" for warning in report.warnings]
    failures = [f"{failure.source}: {failure.error}" for failure in report.failures]
    done = f"{report.new + report.changed} written, {report.deleted} removed, {len(report.failures)} failed"
    if report.skipped:
        done += f", {describe_skipped(report)} skipped"
    return [*notes, *failures, f"{done} ({report.seconds:.1f} s)"]


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set; a second one ends the program as if there were no event."""
    stop = threading.Event()

    def ask(number: int, _: FrameType | None) -> None:
        signal.signal(number, before[number])
        stop.set()

    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
