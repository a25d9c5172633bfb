"""How commands print: results to stdout, everything else to stderr. Rich is loaded when something is printed."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.plain import finite

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def stdout() -> Console:
    """Where results are printed."""
    from rich.console import Console

    return Console()


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
