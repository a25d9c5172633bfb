"""Tables, JSON and notebooks as text that can be searched and read in pieces."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from typing import Any

from pipeline.ingestion.markdown import tables, unescaped

_SAMPLE = 5_000
_DELIMITERS = ",\t;|"
# What separates the cells of a Markdown table.
_CELLS = re.compile(r"(?<!\\)\|")
# Numbers and dates with a letter in them.
_LETTERED = re.compile(
    r"[+-]?[\d.,]+e[+-]?\d+|\d+-\d+-\d+t[\d:.]+(?:z|[+-][\d:]+)?|[\d:/. -]+[ap]m|\d+年\d+月\d+日[\d: ]*", re.IGNORECASE
)


def table_text(text: str) -> str:
    """Rows of a table as ``column: value; ...``, with a blank line between: each chunk tells what its numbers are.

    A table whose first row does not look like a header keeps its rows as they are, and so does what is no table.
    """
    # What is in quotes, names with a comma in them say, does not separate.
    first = re.sub(r'"[^"]*"', "", text[:_SAMPLE].lstrip("\n").split("\n", 1)[0])
    delimiter = max(_DELIMITERS, key=first.count)
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), delimiter=delimiter)]
    except csv.Error:
        return text
    rows = [row for row in rows if any(row)]
    if len(rows) < 2 or not _is_header(rows[0]):
        return text
    return _records(rows)


def sheet_text(text: str) -> str:
    """The Markdown of a spreadsheet with the rows of its tables as those of :func:`table_text`.

    A table stays as it is where rows are empty between others: what is below may have columns of its own.
    """
    parts: list[str] = []
    done = 0
    for table in tables(text):
        header, _, *lines = text[table.start : table.end].splitlines()
        rows = [_cells(line) for line in (header, *lines)]
        while rows and not any(rows[-1]):
            rows.pop()
        if len(rows) > 1 and all(map(any, rows)) and _is_header(rows[0]):
            parts += [text[done : table.start], _records(rows), "\n"]
            done = table.end
    return "".join([*parts, text[done:]])


def _cells(line: str) -> list[str]:
    return [unescaped(cell.strip()) for cell in _CELLS.split(line.strip())[1:-1]]


def _records(rows: Sequence[Sequence[str]]) -> str:
    header = rows[0]
    return "\n\n".join(
        "; ".join(f"{header[i]}: {cell}" if i < len(header) else cell for i, cell in enumerate(row) if cell)
        for row in rows[1:]
    )


def _is_header(row: list[str]) -> bool:
    """Names: each there, none twice, none a number or date."""
    return all(row) and len(set(row)) == len(row) and not any(map(_is_value, row))


def _is_value(cell: str) -> bool:
    """Whether it is a number or date as a whole: "2023" and "-5.2 %" are, "2023年" and "3D" are names."""
    if not (cell[0].isdigit() or cell[0] in "+-."):
        return False
    return not any(map(str.isalpha, cell)) or _LETTERED.fullmatch(cell) is not None


def json_text(text: str) -> str:
    """JSON with a value a line where it has none or hides its letters behind ``\\u`` escapes; else as it is."""
    if "\\u" not in text and text.count("\n") * 500 > len(text):
        return text
    try:
        return json.dumps(json.loads(text), ensure_ascii=False, indent=1)
    except (ValueError, RecursionError):
        return text


def notebook_markdown(text: str) -> str | None:
    """The cells of a Jupyter notebook: texts as they are, code and its output fenced; None if it is none."""
    try:
        notebook = json.loads(text)
        cells = [_cell(cell) for cell in notebook["cells"]]
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return None
    return "\n\n".join(cell for cell in cells if cell) + "\n"


def _cell(cell: dict[str, Any]) -> str:
    source = _lines(cell["source"]).strip("\n")
    if cell["cell_type"] != "code" or not source:
        return source
    outputs = [_output(output).strip("\n") for output in cell.get("outputs", [])]
    return "\n\n".join(f"```\n{part}\n```" for part in (source, "\n".join(filter(None, outputs))) if part)


def _output(output: dict[str, Any]) -> str:
    """What was printed, or the last value as text; a picture's is only its name."""
    data = output.get("data") or {}
    if any(kind.startswith("image/") for kind in data):
        return ""
    return _lines(output.get("text") or data.get("text/plain", ""))


def _lines(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)
