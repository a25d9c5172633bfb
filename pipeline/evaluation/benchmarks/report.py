"""Results as tables on a terminal, a JSON file and small SVG plots."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.evaluation.benchmarks.ingest import print_ingest
from pipeline.evaluation.benchmarks.rerank import print_rerank

_WIDTH, _BAR, _LABEL = 640, 22, 200


def print_peers(results: Sequence[Mapping[str, Any]], console: Console) -> None:
    """One row a system; latencies are "p50 / p95" in milliseconds, "!" marks failed queries."""
    combinations = list(
        dict.fromkeys((run["top_n"], run["clients"]) for result in results for run in result.get("queries", []))
    )
    table = Table(title="Ours beside the peers (equal weights unless said)")
    for name in ("system", "passages/s", "ingest MB", "cold start s"):
        table.add_column(name)
    for top_n, clients in combinations:
        table.add_column(f"top {top_n}, {clients} client{'s'[: clients > 1]}: p50 / p95 ms")
    table.add_column("nDCG@10")
    for result in results:
        if "failed" in result:
            table.add_row(result["system"], f"failed: {result['failed']}")
            continue
        runs = {(run["top_n"], run["clients"]): run for run in result["queries"]}
        table.add_row(
            result["system"],
            f"{result['ingest_passages_per_s']:.1f}",
            str(result["ingest_peak_mb"]),
            f"{result['cold_start_s']:.1f}",
            *(_latency(runs[key]) if key in runs else "" for key in combinations),
            " ".join(f"{value['ndcg@10']:.3f}" for value in result["quality"].values()),
        )
    console.print(table)


def _latency(run: Mapping[str, Any]) -> str:
    failed = f" !{run['failed_queries']}" if run["failed_queries"] else ""
    return f"{run['p50_ms']:.0f} / {run['p95_ms']:.0f}{failed}"


def print_limit(result: Mapping[str, Any], console: Console) -> None:
    """Rates, and the models' share of each product's."""
    table = Table(title=f"The CPU's limit: a product of {result['size']} x {result['size']} on every core")
    table.add_column("what")
    table.add_column("GFLOP/s")
    shares = list(next(iter(result["share"].values())))
    for name in shares:
        table.add_column(name.replace("_", " "))
    for name, rate in result["gflops"].items():
        share = result["share"].get(name, {})
        table.add_row(name, f"{rate:.0f}", *(f"{share[kind]:.0%}" if kind in share else "" for kind in shares))
    console.print(table)


def print_scale(results: Sequence[Mapping[str, Any]], console: Console) -> None:
    """One row a size and way of keeping vectors."""
    table = Table(
        title="The embedded store as it grows (dense, top 100 of all chunks and of those that pass a filter; "
        "memory is that of a process that searches)"
    )
    for name in ("chunks", "distinct", "vectors", "ingest/s", "index s", "disk MB", "own MB", "files MB"):
        table.add_column(name)
    for name in results[0]["search"] if results else ():
        table.add_column(f"{name}: p50 / p95 ms")
        table.add_column("recall@100")
    for row in results:
        cells = [f"{row['chunks']:,}", f"{row['distinct_texts']:,}", row["vectors"], f"{row['ingest_chunks_per_s']:,}"]
        cells += [f"{row['index_s']:.1f}", f"{row['disk_mb']:.0f}"]
        cells += [
            f"{row['search_memory_mb'][kind]:.0f}" if row["search_memory_mb"] else "" for kind in ("own", "files")
        ]
        for search in row["search"].values():
            cells += [f"{search['p50_ms']:.1f} / {search['p95_ms']:.1f}", f"{search['recall@100']:.3f}"]
        table.add_row(*cells)
    console.print(table)


def print_all(result: Mapping[str, Any], console: Console) -> None:
    """Tables of what there is."""
    if "peers" in result:
        print_peers(result["peers"]["systems"], console)
        for line in result["peers"]["notes"]:
            console.print(line, highlight=False)
    if "limit" in result:
        print_limit(result["limit"], console)
    if "scale" in result:
        print_scale(result["scale"], console)
    if "ingest" in result:
        print_ingest(result["ingest"], console)
    if "rerank" in result:
        print_rerank(result["rerank"], console)


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """The whole result, readable. Should the process end meanwhile, the file is as it was."""
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


def write_plots(folder: Path, result: Mapping[str, Any]) -> list[Path]:
    """A bar chart for each top-N and number of clients, one for ingest, and one for the store's search by size."""
    written = []
    peers = [row for row in result.get("peers", {}).get("systems", []) if "failed" not in row]
    charts: dict[str, tuple[str, list[tuple[str, float]]]] = {}
    for row in peers:
        charts.setdefault("ingest", ("Ingest, passages a second (longer is better)", []))[1].append(
            (row["system"], row["ingest_passages_per_s"])
        )
        for run in row["queries"]:
            name = f"query-top{run['top_n']}-clients{run['clients']}"
            title = f"Query, median ms, top {run['top_n']}, {run['clients']} client(s) (shorter is better)"
            charts.setdefault(name, (title, []))[1].append((row["system"], run["p50_ms"]))
    for row in result.get("scale", []):
        charts.setdefault("scale-search", ("Search of the embedded store, median ms (shorter is better)", []))[
            1
        ].append((f"{row['chunks']:,} chunks, {row['vectors']}", row["search"]["all"]["p50_ms"]))
    for name, (title, bars) in charts.items():
        path = folder / f"{name}.svg"
        path.write_text(bar_chart(title, bars), encoding="utf-8")
        written.append(path)
    return written


def bar_chart(title: str, bars: Sequence[tuple[str, float]]) -> str:
    """An SVG of horizontal bars in the order given, with their values; readable on light and dark pages."""
    longest = max((value for _, value in bars), default=0.0) or 1.0
    height = 40 + len(bars) * (_BAR + 8)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="8" y="20" font-size="14" font-weight="600" fill="#1a1a1a">{escape(title)}</text>',
    ]
    for row, (label, value) in enumerate(bars):
        top = 34 + row * (_BAR + 8)
        width = (_WIDTH - _LABEL - 80) * value / longest
        colour = "#2563eb" if label.startswith("ours") else "#94a3b8"
        middle = top + _BAR / 2 + 4.5
        parts += [
            f'<text x="{_LABEL - 8}" y="{middle}" text-anchor="end" fill="#1a1a1a">{escape(label)}</text>',
            f'<rect x="{_LABEL}" y="{top}" width="{width:.1f}" height="{_BAR}" rx="3" fill="{colour}"/>',
            f'<text x="{_LABEL + width + 6:.1f}" y="{middle}" fill="#1a1a1a">{value:,.4g}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])
