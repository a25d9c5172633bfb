"""The page of ``rag eval --report``: one HTML file that asks no network for anything."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from pipeline.evaluation.report import charts, queries, stages
from pipeline.evaluation.report.parts import (
    colour,
    document,
    latency,
    legend,
    milliseconds,
    run_name,
    section,
    signed,
    table,
    text_of,
)
from pipeline.evaluation.run import Evaluation
from pipeline.evaluation.statistics import RESAMPLES, p_value
from pipeline.evaluation.summary import recall_curve

# Reranked runs in the plot of recall: the best ones, so that lines can be told apart.
_CURVES = 3
_COLUMNS = {
    "mrr@10": "MRR@10",
    "recall@5": "recall@5",
    "recall@100": "recall@100",
    "precision@5": "prec.@5",
    "map": "MAP",
}


def page(evaluation: Evaluation, outcome: Mapping[str, Any]) -> str:
    """The report of an evaluation and its outcome (:func:`pipeline.evaluation.summary.outcome`)."""
    labels = [run.spec.label for run in evaluation.runs]
    runs = outcome["runs"]
    body = "".join(
        (
            _header(outcome, labels),
            _table(outcome, labels),
            _plots(evaluation, runs, labels),
            stages.stages(runs, labels),
            queries.section(evaluation, labels),
            stages.scores(evaluation, labels),
            _method(evaluation),
        )
    )
    return document(f"{outcome['dataset']} – retrieval evaluation", body)


def _header(outcome: Mapping[str, Any], labels: Sequence[str]) -> str:
    runs = outcome["runs"]
    best = max(range(len(runs)), key=lambda place: (runs[place]["ndcg@10"], -runs[place]["latency_ms"]["p50"]))
    low, high = runs[best]["interval_95"]["ndcg@10"]
    lead = (
        f"Best by nDCG@10: <strong>{text_of(labels[best])}</strong> with {runs[best]['ndcg@10']:.3f} "
        f"({low:.3f}–{high:.3f}) at {latency(runs[best])} a query"
    )
    if best:
        test = runs[best]["against_first"]["ndcg@10"]
        lead += (
            f", {signed(test['difference'])} against {text_of(labels[0])} at {latency(runs[0])}. "
            + ("That is more than chance" if test["p"] < 0.05 else "That may be chance")
            + f" ({_p(test['p'])})."
        )
    else:
        lead += "." if len(runs) == 1 else ". No other run is better."
    notes = "".join(f'<p class="note">{text_of(note)}</p>' for note in outcome["warnings"])
    return (
        f'<header><p class="eyebrow">Retrieval evaluation · {outcome["queries"]:,} queries · '
        f"{outcome['documents']:,} documents · {datetime.now(UTC):%Y-%m-%d}</p>"
        f'<h1>{text_of(outcome["dataset"])}</h1><p class="lead">{lead}</p>{notes}</header>'
    )


def _table(outcome: Mapping[str, Any], labels: Sequence[str]) -> str:
    runs = outcome["runs"]
    bounds = [bound for run in runs for bound in run["interval_95"]["ndcg@10"]]
    priced = any(run["cost_per_1000_queries"] is not None for run in runs)
    best = {name: max(run[name] for run in runs) for name in ("ndcg@10", *_COLUMNS)}
    rows = []
    for place, (run, label) in enumerate(zip(runs, labels, strict=True)):
        low, high = run["interval_95"]["ndcg@10"]
        said, limits = f"{low:.3f}–{high:.3f}", (min(bounds), max(bounds))
        strip = charts.interval(run["ndcg@10"], low, high, bounds=limits, colour=colour(place), name=said)
        time = run["latency_ms"]
        cells = [
            f'<td class="run">{run_name(place, label)}</td>',
            _number(run, "ndcg@10", best),
            f"<td>{strip}<small>{said}</small></td>",
            _against(run),
            *(_number(run, name, best) for name in _COLUMNS),
            f"<td>{milliseconds(time['p50'])}<small>p95 {milliseconds(time['p95'])}</small></td>",
        ]
        if priced:
            price = run["cost_per_1000_queries"]
            cells.append(f"<td>{'–' if price is None else f'{price:,.2f}'}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = ["Run", "nDCG@10", "95 % interval", "against 1", *_COLUMNS.values(), "median<br>ms"]
    return section(
        "runs",
        "Runs",
        "Means over all queries. The best of each column is bold; a difference counts where its p is small. A "
        "reranked run has no more than its top N, so its recall@100 is at most that of N candidates.",
        table([*head, "cost of 1,000<br>queries"] if priced else head, rows),
    )


def _number(run: Mapping[str, Any], name: str, best: Mapping[str, float]) -> str:
    mark = ' class="best"' if run[name] == best[name] else ""
    return f"<td{mark}>{run[name]:.3f}</td>"


def _against(run: Mapping[str, Any]) -> str:
    if run["against_first"] is None:
        return "<td>–</td>"
    test = run["against_first"]["ndcg@10"]
    way = "" if test["p"] >= 0.05 else ' class="up"' if test["difference"] > 0 else ' class="down"'
    return f"<td{way}>{signed(test['difference'])}<small>{_p(test['p'])}</small></td>"


def _p(p: float) -> str:
    return p_value(p).replace(" ", "\N{NO-BREAK SPACE}")


def _plots(evaluation: Evaluation, runs: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> str:
    points = []
    for place, (run, label) in enumerate(zip(runs, labels, strict=True)):
        low, high = run["interval_95"]["ndcg@10"]
        title = f"{label}: nDCG@10 {run['ndcg@10']:.3f} at {latency(run)}"
        points.append(
            charts.Point(
                str(place + 1), title, max(0.01, run["latency_ms"]["p50"]), run["ndcg@10"], low, high, colour(place)
            )
        )
    series, names = [], []
    for mode, first in evaluation.first_stages.items():
        # In the colour of the run that is this first stage alone, where there is one.
        tint = next((colour(p) for p, run in enumerate(runs) if run["search"] == mode and run["reranker"] == "none"), 1)
        series.append(charts.Line(f"{mode}, first stage", _xy(recall_curve(evaluation, first)), tint))
        names.append(("", f"c{tint}", f"{mode}, first stage"))
    reranked = [place for place, run in enumerate(runs) if run["reranker"] != "none"]
    for place in sorted(sorted(reranked, key=lambda p: -runs[p]["ndcg@10"])[:_CURVES]):
        curve = recall_curve(evaluation, evaluation.runs[place], first=False)
        series.append(charts.Line(labels[place], _xy(curve), colour(place), dashed=True))
        names.append(("dashed", f"c{colour(place)}", f"{place + 1} {labels[place]}"))
    scatter = charts.scatter(
        points, x_label="median time of a query, ms", y_label="nDCG@10", name="Quality over latency"
    )
    curves = charts.lines(series, x_label="N", y_label="recall@N", name="Recall over depth")
    return (
        '<section id="plots"><div class="pair">'
        '<figure><figcaption><h2>Quality and time</h2><p class="hint">Numbers are those of the table; up and left is '
        f"better. On the dotted front no other run is both faster and better.</p></figcaption>{scatter}</figure>"
        '<figure><figcaption><h2>Recall by depth</h2><p class="hint">How many of the relevant documents are among the '
        f"first N. The first stage at N is the ceiling of reranking N.</p></figcaption>{curves}{legend(names)}</figure>"
        "</div></section>"
    )


def _xy(curve: Mapping[str, float]) -> list[tuple[float, float]]:
    return [(float(n), value) for n, value in curve.items()]


def _method(evaluation: Evaluation) -> str:
    sentences = (
        "Every query went through every run, one after the other, on the same candidates where runs share a first "
        "stage. A document's place is that of its best chunk. Metrics are those of trec_eval, through ir-measures; a "
        "query without results counts as 0.",
        f"Intervals are 95 % percentile bootstrap intervals over queries ({RESAMPLES:,} resamples, seeded). p is "
        f"of the two-sided paired randomisation test against the first run ({RESAMPLES:,} sign flips), not "
        "corrected for the number of runs: with many runs, a few small ones are to be expected.",
        "Latency is that of single queries in one process, after a first one that loads the models; a shared stage is "
        "measured once. Other work on the machine slows it down.",
    )
    made_with = (
        f"two-stage-rag {version('two-stage-rag')}",
        f"embedder {text_of(evaluation.embedder)}",
        evaluation.chunking,
        f"Python {platform.python_version()} on {platform.machine()}, {os.cpu_count()} cores",
    )
    return (
        '<section id="method" class="method"><h2>How this was measured</h2>'
        f"{''.join(f'<p>{sentence}</p>' for sentence in sentences)}</section><footer>{' · '.join(made_with)}</footer>"
    )
