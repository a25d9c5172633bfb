"""How commands print: results to stdout, everything else to stderr. Rich is loaded when something is printed."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from pipeline.plain import finite

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


class _Lenient(io.RawIOBase):
    """Where a standard stream goes. What cannot be written is dropped: a command goes on with what it does besides."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self._raw.fileno())

    def isatty(self) -> bool:
        return bool(self._raw.isatty())

    def write(self, data: Any) -> int | None:
        if self.failure is None:
            try:
                written: int | None = self._raw.write(data)
                return written
            except OSError as error:
                self.failure = error
        return len(data)


_printed: _Lenient | None = None


def make_streams_lenient() -> None:
    """From here on neither a full disk nor a reader that has had enough (head, less) ends a command midway.

    :func:`print_failure` tells it at the end. Characters that a stream's encoding lacks are written as escapes.
    """
    global _printed
    if sys.stdin is None:  # else the null device that takes the place of stdout would get the number of stdin
        os.open(os.devnull, os.O_RDONLY)
    sys.stdout, _printed = _lenient(sys.stdout, os.O_RDONLY)
    sys.stderr, _ = _lenient(sys.stderr, os.O_WRONLY)


def _lenient(stream: TextIO | None, closed: int) -> tuple[TextIO, _Lenient | None]:
    """The same stream. A closed one (``>&-``) is None: what is opened next would get its number, and what libraries
    print. So the null device is opened in its place, in the mode ``closed``: reading alone is a failure to write."""
    encoding, by_line = "utf-8", False
    if stream is None:
        raw = _Lenient(io.FileIO(os.open(os.devnull, closed), "w"))
    elif isinstance(stream, io.TextIOWrapper):
        raw = _Lenient(getattr(stream.buffer, "raw", stream.buffer))
        encoding, by_line = stream.encoding, stream.line_buffering or stream.write_through
    else:
        return stream, None
    # A file name may hold what no encoding has; written out as \udce9 it is valid JSON, too.
    buffer = io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, encoding, errors="backslashreplace", line_buffering=by_line), raw


def print_failure() -> OSError | None:
    """Why not all that was printed has gone to stdout; None if it has."""
    sys.stdout.flush()
    return None if _printed is None else _printed.failure


def stdout() -> Console:
    """Where results are printed."""
    from rich.console import Console

    from pipeline.trimming import Trimming

    console = Console()
    console.push_render_hook(Trimming())
    return console


def stderr() -> Console:
    """Where progress and messages are printed."""
    from rich.console import Console

    return Console(stderr=True)


def sayer(console: Console) -> Callable[[str], None]:
    """Prints lines as they are, however long."""
    return lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON object on a line, as ``--json`` promises; numbers that JSON does not have become null.

    Where stdout is not in UTF-8, characters beyond ASCII are escapes, which every reader of JSON knows.
    """
    utf8 = codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name == "utf-8"
    print(json.dumps(finite(value), ensure_ascii=not utf8))
