"""Pieces of HTML that several sections of the report share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from typing import Any

from pipeline.evaluation.report.charts import COLOURS
from pipeline.text import HAN

# What the page may load: nothing, beyond what stands in it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
_HAN = re.compile(f"[{HAN}]")


def document(title: str, body: str) -> str:
    """A whole page around the body: one HTML file that asks no network for anything."""
    here = files("pipeline.evaluation.report")
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><link rel="icon" href="data:,">'
        f"<title>{text_of(title)}</title><style>\n{style}</style></head>"
        f"<body><main>{body}</main><script>\n{script}</script></body></html>\n"
    )


def colour(place: int) -> int:
    """Colour of the run at ``place`` (from 0)."""
    return place % COLOURS + 1


def text_of(value: str) -> str:
    """Escaped for HTML, without what an HTML text cannot hold."""
    clean = "".join(c if c in "\n\t" or (ord(c) >= 32 and not 0xD800 <= ord(c) <= 0xDFFF) else "�" for c in value)
    return escape(clean)


def language(value: str) -> str:
    """A ``lang`` attribute for texts with Chinese characters, which chooses their glyphs and line breaks."""
    return ' lang="zh"' if _HAN.search(value) else ""


def run_name(place: int, label: str) -> str:
    """A run's number in its colour, and its name: what it is, and below that its numbers."""
    main, _, numbers = label.partition(", ")
    below = f'<span class="sub">{text_of(numbers)}</span>' if numbers else ""
    chip = f'<span class="chip c{colour(place)}">{place + 1}</span>'
    return f'<span class="run-name">{chip}<span>{text_of(main)}{below}</span></span>'


def signed(value: float, digits: int = 3) -> str:
    """With its sign, and a real minus."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def panels(heading: str, shown: Mapping[str, tuple[int, str, str]]) -> str:
    """One panel (id -> place, label and content of a run) at a time, with buttons where there is a choice."""
    bodies = "".join(
        f'<div class="panel" id="{panel}"><h3>{run_name(place, label)}</h3>{content}</div>'
        for panel, (place, label, content) in shown.items()
    )
    return tabs(heading, {panel: (place, label) for panel, (place, label, _) in shown.items()}) + bodies


def table(head: Iterable[str], rows: Iterable[str]) -> str:
    """A table that scrolls by itself where it is too wide."""
    names = "".join(f"<th>{name}</th>" for name in head)
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{names}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def section(id_: str, title: str, hint: str, content: str) -> str:
    """A section with its heading and one line on how to read it."""
    return f'<section id="{id_}"><h2>{title}</h2><p class="hint">{hint}</p>{content}</section>'


def legend(entries: Iterable[tuple[str, str, str]]) -> str:
    """(classes of the sample, classes of its colour, text) as a legend."""
    items = "".join(f'<li><i class="{kind} {tint}"></i>{text_of(text)}</li>' for kind, tint, text in entries)
    return f'<ul class="legend">{items}</ul>'


def tabs(name: str, runs: Mapping[str, tuple[int, str]]) -> str:
    """Buttons that show one of the panels; shown by the script alone, and where there is a choice."""
    if len(runs) < 2:
        return ""
    buttons = "".join(
        f'<button role="tab" type="button" id="tab-{panel}" aria-controls="{panel}" class="c{colour(place)}">'
        f'<span class="chip">{place + 1}</span>{text_of(label)}</button>'
        for panel, (place, label) in runs.items()
    )
    return f'<div class="tabs" role="tablist" data-tabs aria-label="{escape(name)}" hidden>{buttons}</div>'


def milliseconds(value: float) -> str:
    """Two significant digits below 10, none after the point from there on."""
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def latency(run: Mapping[str, Any]) -> str:
    """Median of a whole query."""
    return f"{milliseconds(run['latency_ms']['p50'])} ms"
