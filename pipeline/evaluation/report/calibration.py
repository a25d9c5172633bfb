"""The page of ``rag calibrate --report``: what probabilities said and what was true, before and after."""

from __future__ import annotations

from pipeline.evaluation.calibration import Outcome, precision_recall, reliability
from pipeline.evaluation.report.charts import Line, unit_lines
from pipeline.evaluation.report.parts import document, legend, section, table, text_of

_BEFORE, _AFTER = 1, 2
_THRESHOLDS = [place / 50 for place in range(51)]
_ROWS = (0.1, 0.25, 0.5, 0.75, 0.9)


def calibration_page(outcome: Outcome) -> str:
    """The report of a calibration."""
    fitted = outcome.calibration
    error = outcome.to_dict()["calibration_error"]
    lead = f"A probability was off by {error['before']:.3f} on average before, and is off by {error['after']:.3f} now. "
    if fitted.threshold is None:
        lead += f"At no threshold are {fitted.precision:.0%} of the first {outcome.top_k} hits relevant."
    else:
        setting = f"<strong>RAG_THRESHOLD={fitted.threshold:g}</strong>"
        kept = outcome.to_dict()["relevant_kept"]
        lead += (
            f"From {setting} on, {fitted.precision:.0%} of the first {outcome.top_k} hits are relevant, and "
            f"{kept or 0:.1%} of the relevant ones are kept."
        )
    header = (
        f'<header><p class="eyebrow">Calibration · {text_of(fitted.dataset)} · {fitted.queries:,} queries · '
        f"{fitted.pairs:,} candidates, {fitted.relevant:,} relevant · {fitted.created[:10]}</p>"
        f'<h1>{text_of(fitted.reranker)}</h1><p class="lead">{lead}</p></header>'
    )
    return document(f"{fitted.reranker} – calibration", header + _plots(outcome) + _table(outcome) + _method(outcome))


def _plots(outcome: Outcome) -> str:
    once = outcome.pairs.once
    relevant = outcome.pairs.relevant[once]
    sides = (("before", outcome.pairs.probability, _BEFORE, True), ("after", outcome.after, _AFTER, False))
    said = [
        Line(name, [(mean, true) for mean, true, _ in reliability(values[once], relevant)], tint, dashed)
        for name, values, tint, dashed in sides
    ]
    precision, recall = [], []
    for name, values, tint, dashed in sides:
        curve = precision_recall(outcome.pairs, values, _THRESHOLDS, outcome.top_k)
        precision.append(Line(name, [(t, p) for t, p, _ in curve if p is not None], tint, dashed))
        recall.append(Line(name, [(t, r) for t, _, r in curve if r is not None], tint, dashed))
    names = legend([("dashed", f"c{_BEFORE}", "before"), ("", f"c{_AFTER}", "after")])
    charts = (
        (
            "Said and true",
            "Candidates grouped by their probability. On the dotted diagonal a probability is what it says.",
            unit_lines(
                said, x_label="probability", y_label="share that is relevant", name="Reliability", diagonal=True
            ),
        ),
        (
            "Precision by threshold",
            f"Share of relevant ones among the first {outcome.top_k} hits that a threshold leaves.",
            unit_lines(precision, x_label="threshold", y_label="precision", name="Precision over threshold"),
        ),
        (
            "Recall by threshold",
            f"Share of the relevant ones among the first {outcome.top_k} hits that a threshold keeps.",
            unit_lines(recall, x_label="threshold", y_label="recall", name="Recall over threshold"),
        ),
    )
    figures = "".join(
        f'<figure><figcaption><h2>{title}</h2><p class="hint">{hint}</p></figcaption>{chart}{names}</figure>'
        for title, hint, chart in charts
    )
    return f'<section id="plots"><div class="pair">{figures}</div></section>'


def _table(outcome: Outcome) -> str:
    before, after = (
        precision_recall(outcome.pairs, values, _ROWS, outcome.top_k)
        for values in (outcome.pairs.probability, outcome.after)
    )
    rows = (
        f"<tr><td>{t:g}</td>{_cells(p0, r0)}{_cells(p1, r1)}</tr>"
        for (t, p0, r0), (_, p1, r1) in zip(before, after, strict=True)
    )
    head = ("Threshold", "precision<br>before", "recall<br>before", "precision<br>after", "recall<br>after")
    return section(
        "thresholds", "Thresholds", f"What RAG_THRESHOLD keeps of the first {outcome.top_k} hits.", table(head, rows)
    )


def _cells(*shares: float | None) -> str:
    return "".join(f"<td>{'–' if share is None else f'{share:.3f}'}</td>" for share in shares)


def _method(outcome: Outcome) -> str:
    how = {
        "platt": "a logistic curve over the logit (Platt scaling)",
        "isotonic": "the rising line that fits best (isotonic regression)",
    }[outcome.calibration.method]
    return (
        '<section id="method" class="method"><h2>How this was measured</h2>'
        f"<p>The map is {how}. What is shown as after was fitted on one half of the queries and applied to the other, "
        "both ways; the map that is kept was fitted on all of them. Of a relevant document only the best chunk counts, "
        "and candidates without a judgement count as irrelevant.</p></section>"
    )
