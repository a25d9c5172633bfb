"""How ``rag eval`` and its like look on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.display import print_pairs
from pipeline.evaluation.statistics import p_value


def print_eval(console: Console, outcome: Mapping[str, Any]) -> None:
    """The table of quality with intervals, and that of the two stages apart."""
    runs = outcome["runs"]
    size = f"{outcome['queries']} queries, {outcome['documents']} documents ({outcome['chunking']})"
    console.print(f"{outcome['dataset']}: {size}", style="bold")
    # The names stand above the tables, which then fit into 80 columns.
    for place, run in enumerate(runs, 1):
        console.print(Text.assemble((f"{place:>3}  ", "dim"), run["label"]))
    console.print()
    quality = _table("", "nDCG@10", "95 % interval", "against 1", "p", "MRR@10", "recall@5", "recall@100")
    stages = _table(
        "", "recall", "nDCG before", "after", "p50 ms", "p95 ms", "embed", "search", "rerank", "read", "pairs/s"
    )
    for place, run in enumerate(runs, 1):
        low, high = run["interval_95"]["ndcg@10"]
        test = run["against_first"]["ndcg@10"] if run["against_first"] else None
        quality.add_row(
            str(place),
            f"{run['ndcg@10']:.4f}",
            f"{low:.3f}-{high:.3f}",
            f"{test['difference']:+.4f}" if test else "",
            p_value(test["p"], "") if test else "",
            *(f"{run[metric]:.4f}" for metric in ("mrr@10", "recall@5", "recall@100")),
        )
        latency, first = run["latency_ms"], run["first_stage"]
        stages.add_row(
            str(place),
            f"{first['recall']:.4f}",
            f"{first['ndcg@10']:.4f}",
            f"{run['ndcg@10']:.4f}",
            *(f"{latency[p]:.1f}" for p in ("p50", "p95")),
            *(f"{latency[stage]['p50']:.1f}" for stage in ("embed", "search", "rerank")),
            f"{run['reranked']:g}" if run["reranked"] else "",
            "" if run["pairs_per_second"] is None else f"{run['pairs_per_second']:.0f}",
        )
    console.print(quality)
    console.print(
        "\nThe stages apart: recall of all candidates, the ceiling of reranking; nDCG@10; times; how many the reranker "
        "read",
        style="dim",
    )
    console.print(stages)
    for run in runs:
        if run["cost_per_1000_queries"] is not None:
            console.print(f"{run['label']}: {run['cost_per_1000_queries']:g} for 1,000 queries", highlight=False)
    for warning in outcome["warnings"]:
        console.print(Text.assemble(("note: ", "yellow"), warning))


def print_comparison(console: Console, found: Mapping[str, Any]) -> None:
    """Two saved runs beside each other."""
    a, b = found["a"], found["b"]
    console.print(f"{found['dataset']}: {found['queries']} queries", style="bold")
    for name, side in (("A", a), ("B", b)):
        console.print(Text(f"{name}  {side['run']}\n   {side['path']}"), soft_wrap=True)
    for name, (old, new) in found["made"].items():
        console.print(Text(f"{name}: {_value(old)} in A, {_value(new)} in B"), style="yellow", soft_wrap=True)
    table = _table("", "A", "B", "B - A", "95 % interval", "p")
    for metric, test in found["difference"].items():
        table.add_row(
            metric,
            f"{a[metric]:.4f}",
            f"{b[metric]:.4f}",
            f"{test['difference']:+.4f}",
            f"{test['low']:+.4f} to {test['high']:+.4f}",
            p_value(test["p"], ""),
        )
    for p in ("p50", "p95"):
        old, new = a["latency_ms"][p], b["latency_ms"][p]
        table.add_row(f"{p} ms", f"{old:.1f}", f"{new:.1f}", f"{new - old:+.1f}", "", "")
    console.print(table)
    console.print(
        f"nDCG@10 is better in {found['better']} queries, worse in {found['worse']}, equal in {found['equal']}"
    )
    for query in found["most_worse"]:
        old, new = query["ndcg@10"]
        console.print(Text(f"  {old:.2f} -> {new:.2f}  {query['query']}"))


def _value(value: object) -> str:
    return "none" if value is None else str(value)


def print_questions(console: Console, found: Mapping[str, Any]) -> None:
    """What was made, and what it is good for."""
    kinds = ", ".join(f"{count} from {kind}s" for kind, count in found["kinds"].items())
    console.print(
        Text(f"{found['path']}: {found['questions']} questions ({kinds}) over {found['documents']} documents")
    )
    if found["unreadable"]:
        console.print(f"{found['unreadable']} files or lines could not be read: rag ingest names them", style="yellow")
    console.print(Text(found["note"]), style="dim")


def print_tuned(console: Console, found: Mapping[str, Any]) -> None:
    """What was chosen, how it does on the queries that had no part in it, and the lines for ``.env``."""
    metric, queries = found["metric"], found["queries"]
    console.print(
        f"{found['dataset']}: {found['tried']} combinations tried on {queries['tuned_on']} queries, "
        f"{found['within_budget']} within {found['budget_ms']:g} ms",
        style="bold",
    )
    console.print(f"On the other {queries['held_out']} queries:", style="dim")
    table = _table("", metric, "p50 ms", "p95 ms", "run")
    for side in ("now", "chosen"):
        one = found[side]
        latency = one["latency_ms"]
        table.add_row(side, f"{one[metric]:.4f}", f"{latency['p50']:.1f}", f"{latency['p95']:.1f}", Text(one["run"]))
    console.print(table)
    low, high = found["interval_95"]
    sure = "more than chance" if found["p"] < 0.05 else "may be chance"
    console.print(f"difference {found['difference']:+.4f} ({low:+.4f} to {high:+.4f}), {p_value(found['p'])}: {sure}")
    kept = found["threshold"] or found["lowest_threshold"]
    shares = {name: "-" if kept[name] is None else f"{kept[name]:.1%}" for name in ("relevant_kept", "irrelevant_kept")}
    others = f"{shares['irrelevant_kept']} of the others"
    if found["threshold"] is not None:
        console.print(f"the threshold keeps {shares['relevant_kept']} of the relevant hits there, and {others}")
    elif kept["relevant_kept"] is not None:
        console.print(
            "no threshold keeps 99 % of the relevant hits that it was to be chosen by: 0.01, the lowest that is tried, "
            f"keeps {shares['relevant_kept']}, and {others}"
        )
    console.print()
    for name, value in found["env"].items():
        console.print(Text(f"{name}={value}"))


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=bool(place))
    return table


def print_calibration(console: Console, outcome: Mapping[str, Any]) -> None:
    """What ``rag calibrate`` fitted, and how far probabilities were from the truth before and after."""
    error, half = outcome["calibration_error"], outcome["precision_at_half"]
    threshold, hits = outcome["threshold"], f"the first {outcome['top_k']} hits"
    kept = outcome["relevant_kept"]

    def share(value: float | None) -> str:
        return "no hit" if value is None else f"{value:.3f}"

    print_pairs(
        console,
        [
            ("reranker", outcome["reranker"]),
            (
                "fitted on",
                f"{outcome['dataset']}: {outcome['queries']} queries, {outcome['pairs']} candidates, "
                f"{outcome['relevant']} of them relevant ({outcome['method']})",
            ),
            ("calibration error", f"{error['before']:.4f} before, {error['after']:.4f} after"),
            ("relevant over 0.5", f"{share(half['before'])} before, {share(half['after'])} after, of {hits}"),
            (
                f"precision {outcome['precision']:g}",
                f"in {hits}: "
                + (
                    "not reached on 10 hits or more"
                    if threshold is None
                    else f"from RAG_THRESHOLD={threshold:g} on, which keeps {kept or 0:.1%} of the relevant ones"
                ),
            ),
            ("kept in", f"{outcome['file']} (remove it to undo)"),
        ],
    )
