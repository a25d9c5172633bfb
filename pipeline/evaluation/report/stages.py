"""The sections on the stages: the first stage and the reranker apart, and the reranker's scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.evaluation.report import charts
from pipeline.evaluation.report.parts import legend, milliseconds, panels, run_name, section, signed, table
from pipeline.evaluation.run import STAGES, Evaluation, RunResult


def stages(runs: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> str:
    """What the first stage gives, what reranking makes of it, and where the time goes."""
    slowest = max(sum(run["latency_ms"][stage]["p50"] for stage in STAGES) for run in runs) or 1.0
    rows = []
    for place, (run, label) in enumerate(zip(runs, labels, strict=True)):
        first, times = run["first_stage"], {stage: run["latency_ms"][stage]["p50"] for stage in STAGES}
        bar = "".join(f'<i class="{stage}" style="width:{100 * ms / slowest:.2f}%"></i>' for stage, ms in times.items())
        change = run["ndcg@10"] - first["ndcg@10"]
        way = "up" if change > 0.0005 else "down" if change < -0.0005 else ""
        reranked = run["reranker"] != "none"
        after = (
            f'<td>{run["ndcg@10"]:.3f}</td><td class="{way}">{signed(change)}</td>' if reranked else "<td>–</td>" * 2
        )
        read = f"{run['reranked']:g}" if run["reranked"] else "–"
        speed = "–" if run["pairs_per_second"] is None else f"{run['pairs_per_second']:,.0f}"
        cells = [
            f'<td class="run">{run_name(place, label)}</td>',
            f"<td>{first['recall']:.3f}</td><td>{first['ndcg@10']:.3f}</td>{after}",
            f'<td><span class="time">{bar}</span></td>',
            *(f"<td>{milliseconds(ms) if ms else '–'}</td>" for ms in times.values()),
            f"<td>{read}</td><td>{speed}</td>",
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = ("Run", "recall of all<br>candidates", "nDCG@10<br>before", "after<br>reranking", "gain", "median time")
    return section(
        "stages",
        "The two stages apart",
        "What the first stage recalled is the most that any reranker can bring to the top; what it makes of it is the "
        "gain. Times in milliseconds.",
        table([*head, *STAGES, "texts<br>read", "pairs/s"], rows)
        + legend([("box " + stage, "", stage) for stage in STAGES]),
    )


def scores(evaluation: Evaluation, labels: Sequence[str]) -> str:
    """How well each reranker's probabilities tell relevant from irrelevant; empty without a reranker."""
    # Alpha and threshold do not change the scores: one run of each reranker and depth shows them.
    kinds: dict[tuple[str, str, int], int] = {}
    for place, run in enumerate(evaluation.runs):
        if run.spec.reranker != "none":
            kinds.setdefault((run.spec.search, run.spec.reranker, run.spec.top_n), place)
    if not kinds:
        return ""
    shown = {
        f"scores-{place + 1}": (place, labels[place], _histogram(evaluation, evaluation.runs[place]))
        for place in kinds.values()
    }
    return section(
        "scores",
        "Scores",
        "Rerank probabilities of the candidate chunks; one counts as relevant where its document is. The further "
        "apart the two are, the more a threshold can do.",
        panels("Run", shown),
    )


def _histogram(evaluation: Evaluation, run: RunResult) -> str:
    relevant: list[float] = []
    irrelevant: list[float] = []
    for id_, answer in run.answers.items():
        for document, probability in answer.scores:
            (relevant if evaluation.dataset.qrels[id_].get(document, 0) > 0 else irrelevant).append(probability)
    rows = "".join(
        f"<tr><td>{cut:g}</td><td>{_share(relevant, cut):.1%}</td><td>{_share(irrelevant, cut):.1%}</td></tr>"
        for cut in (0.05, 0.1, 0.25, 0.5, 0.75, 0.9)
    )
    chart = charts.histogram(relevant, irrelevant, name="Rerank probabilities of relevant and irrelevant candidates")
    samples = legend(
        [
            ("box", "relevant-box", f"{len(relevant):,} relevant"),
            ("box", "irrelevant-box", f"{len(irrelevant):,} irrelevant"),
        ]
    )
    return (
        f'<div class="pair"><figure>{chart}{samples}</figure><div><table><thead><tr><th>Threshold</th>'
        f"<th>relevant kept</th><th>irrelevant kept</th></tr></thead><tbody>{rows}</tbody></table></div></div>"
    )


def _share(values: Sequence[float], cut: float) -> float:
    return sum(value >= cut for value in values) / len(values) if values else 0.0
