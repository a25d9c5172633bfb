"""How results look on a terminal. Plain text where the output is no terminal: rich takes care of that."""

from __future__ import annotations

import re
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from pipeline.ingestion.run import Progress
from pipeline.reports import ExportReport, ImportReport, IngestProfile, IngestReport, VerifyReport
from pipeline.text import HAN, UNSPACED
from pipeline.types import Hit, QueryResult

_SNIPPET_CHARACTERS = 320
_PLAIN_EVERY_S = 5.0
_PROBLEMS_SHOWN = 20
# Too common to be worth a mark; only for looks, so the list is short.
_COMMON = frozenset(
    re.findall(
        r"\S+",
        "a an and are as at be by can do does for from has have how i in is it its of on or that the this to was what "
        "when where which who why will with you your 的 了 是 在 和 有 什么 怎么 如何 哪些 哪个 为什么 吗",
    )
)
_LATIN = re.compile(rf"[^\W_{UNSPACED}]+")
_IN_LATIN = rf"[^\W{UNSPACED}]"
_CJK = re.compile(rf"[\u3040-\u30ff{HAN}]+")


def query_terms(query: str) -> list[str]:
    """What to mark in a text: the query's words, and the pairs of neighbouring characters of Chinese."""
    query = unicodedata.normalize("NFKC", query)
    terms = [word for word in _LATIN.findall(query) if word.lower() not in _COMMON and len(word) > 1]
    for run in _CJK.findall(query):
        pairs = [run[i : i + 2] for i in range(len(run) - 1)] or [run]
        terms.extend(pair for pair in pairs if pair not in _COMMON)
    return list(dict.fromkeys(terms))


def _pattern(terms: list[str]) -> re.Pattern[str] | None:
    if not terms:
        return None
    # A Latin term also marks its inflections ("index" in "indexes"), but not the middle of another word; Chinese may
    # touch it.
    parts = [
        re.escape(term) if _CJK.match(term) else rf"(?<!{_IN_LATIN}){re.escape(term)}{_IN_LATIN}{{0,3}}(?!{_IN_LATIN})"
        for term in terms
    ]
    return re.compile("|".join(parts), re.IGNORECASE)


def snippet(text: str, query: str, length: int = _SNIPPET_CHARACTERS) -> Text:
    """The part of a text, of about ``length`` characters, with most of the query's terms, and these marked."""
    text = _line(text)
    pattern = _pattern(query_terms(query))
    places = [match.start() for match in pattern.finditer(text)] if pattern else []
    start = 0
    if len(text) > length and places:
        best = max(places, key=lambda place: sum(place <= other < place + length * 3 // 4 for other in places))
        start = max(0, best - length // 6)
        if start:
            space = text.find(" ", start, start + 20)
            start = space + 1 if space >= 0 else start
    piece = text[start : start + length]
    shown = Text(("… " if start else "") + piece + (" …" if start + length < len(text) else ""))
    if pattern is not None:
        shown.highlight_regex(pattern, "bold yellow")
    return shown


def print_result(console: Console, result: QueryResult) -> None:
    """A readable ranking: final rank beside first-stage rank, scores, source, and the matching text."""
    for warning in result.warnings:
        console.print(f"[yellow]note:[/] {escape(warning)}")
    if not result.hits:
        console.print("no hits" if result.candidates else "nothing found")
    for hit in result.hits:
        console.print(_hit(hit, result.query))
    t = result.timings_ms
    read = f" read {result.reranked}" if 0 < result.reranked < result.candidates else ""
    console.print(
        f"[dim]{len(result.hits)} of {result.candidates} candidates · reranker {escape(result.reranker)}{read} · "
        f"embed {t['embed']:.0f} ms · search {t['search']:.0f} ms · rerank {t['rerank']:.0f} ms[/]"
    )


def _hit(hit: Hit, query: str) -> Group:
    moved = hit.first_stage.rank - hit.rank
    arrow = f"↑{moved}" if moved > 0 else f"↓{-moved}" if moved < 0 else "="
    parts = [f"score {hit.score:.3f}"]
    if hit.rerank is not None:
        parts.append(f"rerank {hit.rerank.probability:.3f}")
    parts.append(f"first stage #{hit.first_stage.rank} {arrow}")
    head = Text.assemble((f"{hit.rank}. ", "bold"), (_line(_heading(hit)), "bold cyan"))
    below = [
        Text("  ".join(parts), style="dim"),
        Text(_line(hit.source), style="dim", overflow="fold"),
        snippet(_matched(hit), query),
    ]
    return Group(head, Padding(Group(*below), (0, 0, 1, 3)))


def _heading(hit: Hit) -> str:
    """The title; else the document's id, unless that is the path of a file, of which the source is shown."""
    return hit.chunk.title or (hit.source if hit.document_id in hit.sources else hit.document_id)


def _line(text: str) -> str:
    """On one line, and without what would steer the terminal."""
    return re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", text).strip()


def _matched(hit: Hit) -> str:
    """The text, or the window of it that the reranker found best."""
    window = hit.rerank.window if hit.rerank is not None else None
    return hit.text if window is None else hit.text[slice(*window)]


def print_report(console: Console, report: IngestReport) -> None:
    """What an ingest did, and each failure on a line."""
    verb = "would be" if report.dry_run else ""
    counts = (
        f"{report.new} new, {report.changed} changed, {report.unchanged} unchanged, {report.deleted} deleted, "
        f"{len(report.failures)} failed"
    )
    console.print(f"documents{' ' + verb if verb else ''}: {counts}")
    console.print(
        f"chunks{' ' + verb if verb else ''}: {report.chunks_written} written, {report.chunks_deleted} deleted"
        f"  ({report.seconds:.1f} s)"
    )
    if report.skipped:
        console.print(f"skipped: {describe_skipped(report)}", highlight=False, soft_wrap=True)
    for warning in report.warnings:
        console.print(f"[yellow]note:[/] {escape(warning)}")
    if report.failures:
        console.print(Rule("failed", style="red", align="left"))
    for failure in report.failures:
        console.print(f"[red]{escape(failure.source)}[/]: {escape(failure.error)}", soft_wrap=True)


def describe_skipped(report: IngestReport) -> str:
    """How many files hold no text, and what they are: ``12 files without text (PNG image: 10, empty file: 2)``."""
    kinds = Counter(file.error.removesuffix(", no text") for file in report.skipped)
    listed = ", ".join(f"{kind}: {count}" for kind, count in kinds.most_common())
    return f"{len(report.skipped)} {'file' if len(report.skipped) == 1 else 'files'} without text ({listed})"


def print_profile(console: Console, profile: IngestProfile) -> None:
    """How the time of an ingest was spent."""
    stages = ", ".join(
        f"{stage} {getattr(profile, stage):.1f} s" for stage in ("reading", "chunking", "embedding", "writing")
    )
    peak = "" if profile.peak_mb is None else f"; peak memory {profile.peak_mb:,.0f} MB"
    console.print(
        f"profile: {profile.seconds:.1f} s, side by side: {stages}; the embedder was busy "
        f"{profile.embedder_busy:.0%} of the time; index {profile.indexing:.1f} s{peak}",
        highlight=False,
        soft_wrap=True,
    )


def print_verification(console: Console, report: VerifyReport, store: str) -> None:
    """What is wrong with a collection, a line each, and the first of each kind if there are many.

    ``store`` is the name to say where there is none.
    """

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    for title, problems in (("repaired", report.repaired), ("", report.problems)):
        shown: Counter[str] = Counter()
        for problem in problems:
            shown[problem.kind] += 1
            if shown[problem.kind] <= _PROBLEMS_SHOWN:
                where = dict.fromkeys(part for part in (problem.document_id, problem.source) if part)
                line(": ".join([*([title] if title else []), problem.kind, *where, problem.detail]))
        for kind, count in shown.items():
            if count > _PROBLEMS_SHOWN:
                line(f"{title + ': ' if title else ''}{kind}: {count - _PROBLEMS_SHOWN} more (all of them with --json)")
    if not report.exists:
        line(f"{store} does not exist: begin with rag ingest PATH")
        return
    state = "clean" if report.clean else f"{len(report.problems)} problems"
    console.print(f"{report.documents} documents, {report.chunks} chunks: {state}", highlight=False)


def print_transfer(console: Console, done: str, report: ExportReport | ImportReport) -> None:
    """What an export or import did, and what is to be said about it."""
    for warning in report.warnings:
        console.print(f"[yellow]note:[/] {escape(warning)}", soft_wrap=True)
    console.print(f"{done}  ({report.seconds:.1f} s)", markup=False, highlight=False, soft_wrap=True)


def print_pairs(console: Console, rows: list[tuple[str, str]]) -> None:
    """Names and values in two columns."""
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(Text(name, style="bold"), Text(value, overflow="fold"))  # a path must be whole
    console.print(table)


@contextmanager
def ingest_progress(console: Console) -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal; elsewhere a plain line every few seconds."""
    if console.is_terminal:
        with Bar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        ) as bar:
            task = bar.add_task("files", total=None, detail="")

            def show(step: Progress) -> None:
                detail = step.message or f"{step.documents} documents, {step.chunks} chunks written"
                bar.update(task, total=step.files_total or None, completed=step.files_done, detail=detail)

            yield show
        return
    last, said = time.monotonic(), ""
    counted: Progress | None = None
    latest: Progress | None = None

    def say(step: Progress) -> None:
        nonlocal last, said, counted, latest
        now = time.monotonic()
        if step.message:
            if step.message != said:
                said = step.message
                console.print(said, highlight=False)
            return
        latest = step
        if now - last >= _PLAIN_EVERY_S:
            last, counted = now, step
            _print_counts(console, step)

    yield say
    if counted is not None and latest is not None and counted != latest:  # else its last line and the report differ
        _print_counts(console, latest)


def _print_counts(console: Console, step: Progress) -> None:
    console.print(
        f"{step.files_done}/{step.files_total} files, {step.documents} documents, {step.chunks} chunks written",
        highlight=False,
    )
