"""Query by query: where a relevant document stood before and after, and what now stands above it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.evaluation.metrics import metrics_by_query
from pipeline.evaluation.report import charts, parts
from pipeline.evaluation.report.parts import language, signed, text_of
from pipeline.evaluation.run import Evaluation, RunResult

_WORST, _BEST = 25, 10
_TEXT = 700
_METRIC = {"ndcg@10": "nDCG@10"}


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one query."""

    query: str
    difference: float
    """Of nDCG@10."""
    relevant: str
    """The relevant document that made the most of the difference."""
    before: int | None
    after: int | None
    """Its ranks; None where it is not in the list."""
    top: str | None
    """The document that is now first."""
    top_before: int | None
    texts: Mapping[str, str]


def changes(evaluation: Evaluation, run: RunResult) -> list[Change]:
    """Every query with the first stage's order (or, without a reranker, the first run's) against the final one."""
    if run.spec.reranker == "none":
        other = evaluation.runs[0]
        before = {id_: other.answers[id_].ranking for id_ in run.answers}
    else:
        other = run
        before = {id_: answer.first for id_, answer in run.answers.items()}
    old = metrics_by_query(evaluation.dataset.qrels, before, _METRIC)["ndcg@10"]
    found = []
    for id_, answer in run.answers.items():
        difference = run.values["ndcg@10"][id_] - old[id_]
        was, now = _ranks(before[id_]), _ranks(answer.ranking)
        moved = {
            document: grade * (_discount(now.get(document)) - _discount(was.get(document)))
            for document, grade in evaluation.dataset.qrels[id_].items()
            if grade > 0
        }
        # Of several relevant documents the one that made the most of the difference.
        chosen = (min if difference < 0 else max)(moved, key=lambda document: moved[document])
        top = answer.ranking[0] if answer.ranking else None
        found.append(
            Change(
                query=evaluation.dataset.queries[id_],
                difference=difference,
                relevant=chosen,
                before=was.get(chosen),
                after=now.get(chosen),
                top=top,
                top_before=None if top is None else was.get(top),
                texts={**other.answers[id_].texts, **answer.texts},
            )
        )
    return found


def _discount(rank: int | None) -> float:
    """What a place is worth to nDCG."""
    return 0.0 if rank is None else 1 / math.log2(rank + 1)


def _ranks(ranking: Sequence[str]) -> dict[str, int]:
    return {document: rank for rank, document in enumerate(ranking, 1)}


def section(evaluation: Evaluation, labels: Sequence[str]) -> str:
    """The gains and losses of every run that has something to be compared with; empty if none has."""
    shown = [
        place
        for place, run in enumerate(evaluation.runs)
        if run.spec.reranker != "none" or (place and not _reranked(evaluation))
    ]
    if not shown:
        return ""
    against = "its own first stage" if _reranked(evaluation) else f"run 1 ({text_of(labels[0])})"
    return parts.section(
        "queries",
        "Query by query",
        f"Each run against {against}, by nDCG@10. A click opens the two texts: the relevant one, and the one that now "
        "stands first.",
        parts.panels(
            "Run",
            {
                f"queries-{place + 1}": (place, labels[place], _panel(changes(evaluation, evaluation.runs[place])))
                for place in shown
            },
        ),
    )


def _reranked(evaluation: Evaluation) -> bool:
    return any(run.spec.reranker != "none" for run in evaluation.runs)


def _panel(found: Sequence[Change]) -> str:
    worse = sorted((c for c in found if c.difference < -1e-9), key=lambda c: c.difference)
    better = sorted((c for c in found if c.difference > 1e-9), key=lambda c: -c.difference)
    equal = len(found) - len(worse) - len(better)
    if not worse and not better:
        return f'<p class="tally">All {equal} queries as before.</p>'
    tally = (
        f'<p class="tally"><strong class="up">{len(better)} better</strong> · {equal} as before · '
        f'<strong class="down">{len(worse)} worse</strong></p>'
    )
    chart = charts.changes([c.difference for c in worse + better], name="Change of nDCG@10 by query")
    pieces = [tally, f'<div class="changes">{chart}</div>']
    for title, some, limit in (("Worse", worse, _WORST), ("Better", better, _BEST)):
        if some:
            pieces.append(f'<div class="block"><h3>{title}</h3>{"".join(_change(c) for c in some[:limit])}')
            if len(some) > limit:
                pieces.append(f'<p class="more">and {len(some) - limit} more, with smaller changes</p>')
            pieces.append("</div>")
    return "".join(pieces)


def _change(change: Change) -> str:
    way = "up" if change.difference > 0 else "down"
    first = (
        _side(change, change.top, "Now first", change.top_before, 1, "")
        if change.top is not None and change.top != change.relevant
        else ""
    )
    return (
        f'<details><summary><span class="delta {way}">{signed(change.difference, 2)}</span>'
        f'<span class="query"{language(change.query)}>{text_of(change.query)}</span>'
        f'<span class="ranks">{_rank(change.before)} → {_rank(change.after)}</span></summary>'
        f'<div class="sides">{_side(change, change.relevant, "Relevant", change.before, change.after, "relevant-doc")}'
        f"{first}</div></details>"
    )


def _side(change: Change, document: str, title: str, before: int | None, after: int | None, kind: str) -> str:
    text = change.texts.get(document, "")
    shown = text if len(text) <= _TEXT else text[:_TEXT].rsplit(" ", 1)[0] + " …"
    body = f"<p{language(shown)}>{text_of(shown)}</p>" if shown else '<p class="sub">Not among the candidates.</p>'
    return (
        f'<div class="side"><h4 class="{kind}">{title}: rank {_rank(before)} → {_rank(after)}</h4>'
        f'<div class="where">{text_of(document)}</div>{body}</div>'
    )


def _rank(rank: int | None) -> str:
    return "–" if rank is None else str(rank)
