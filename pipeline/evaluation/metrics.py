"""Retrieval metrics, computed by ir-measures (which runs trec_eval's own code)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import SettingsError

Qrels = Mapping[str, Mapping[str, int]]
"""Query id -> document id -> relevance; 0 and below is irrelevant."""
Rankings = Mapping[str, Sequence[str]]
"""Query id -> document ids, best first."""

#: Name in our output -> name in ir-measures. A document that nobody judged counts as irrelevant in all of them.
METRICS = {
    "ndcg@10": "nDCG@10",
    "mrr@10": "RR@10",
    "recall@5": "R@5",
    "recall@100": "R@100",
    "precision@5": "P@5",
    "map": "AP",
}


def metrics_at(depths: Sequence[int]) -> dict[str, str]:
    """:data:`METRICS`, and nDCG, MRR, recall and precision at each further depth."""
    more = {
        f"{name}@{k}": f"{spelled}@{k}"
        for k in depths
        for name, spelled in (("ndcg", "nDCG"), ("mrr", "RR"), ("recall", "R"), ("precision", "P"))
    }
    return {**METRICS, **more}


def metrics_by_query(
    qrels: Qrels, rankings: Rankings, metrics: Mapping[str, str] = METRICS
) -> dict[str, dict[str, float]]:
    """Metric -> query -> value, for every judged query in the order of ``qrels``; one without results counts as 0.

    Raises:
        SettingsError: a ranking is for a query without judgements: the ids do not match.
    """
    import ir_measures

    unknown = [id_ for id_ in rankings if id_ not in qrels]
    if unknown:
        raise SettingsError(
            f"{len(unknown)} of {len(rankings)} ranked queries have no judgements, such as {unknown[0]!r}: do run and "
            "qrels belong to the same dataset?"
        )
    # trec_eval is C: it crashes on ids that are not UTF-8, as file names may be, and ends them at a NUL. So both are
    # numbered for it. It orders by score, so places become scores.
    queries = list(qrels)
    numbers: dict[str, str] = {}

    def number(document: str) -> str:
        return numbers.setdefault(document, str(len(numbers)))

    judged = {str(i): {number(id_): grade for id_, grade in qrels[query].items()} for i, query in enumerate(queries)}
    run = {
        str(i): {number(id_): float(len(rankings[query]) - place) for place, id_ in enumerate(rankings[query])}
        for i, query in enumerate(queries)
        if query in rankings
    }
    measures = {_measure(spelled): name for name, spelled in metrics.items()}
    found = {name: dict.fromkeys(qrels, 0.0) for name in metrics}
    for value in ir_measures.iter_calc(list(measures), judged, run):
        found[measures[value.measure]][queries[int(value.query_id)]] = float(value.value)
    return found


def _measure(spelled: str) -> Any:
    # Not ir_measures.parse_measure: it needs a part of "ast" that Python 3.14 has no more.
    import ir_measures

    name, _, depth = spelled.partition("@")
    measure = getattr(ir_measures, name)
    return measure @ int(depth) if depth else measure


def mean_metrics(qrels: Qrels, rankings: Rankings, metrics: Mapping[str, str] = METRICS) -> dict[str, float]:
    """Each metric's mean over all judged queries; see :func:`metrics_by_query`."""
    by_query = metrics_by_query(qrels, rankings, metrics)
    return {name: sum(values.values()) / len(values) for name, values in by_query.items()}
