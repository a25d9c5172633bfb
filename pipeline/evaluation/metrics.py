"""Retrieval metrics, computed by ir-measures (which runs trec_eval's own code)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.errors import SettingsError

#: Name in our output -> name in ir-measures.
METRICS = {"ndcg@10": "nDCG@10", "mrr@10": "RR@10", "recall@5": "R@5", "recall@100": "R@100"}


def mean_metrics(qrels: Mapping[str, Mapping[str, int]], rankings: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Each metric's mean over all judged queries; a query without results counts as 0.

    ``rankings`` has document ids, best first. Reciprocal rank is cut at 10, and an unjudged document is irrelevant.

    Raises:
        SettingsError: a ranking is for a query without judgements: the ids do not match.
    """
    import ir_measures

    unknown = [id_ for id_ in rankings if id_ not in qrels]
    if unknown:
        raise SettingsError(f"{len(unknown)} ranked queries have no judgements, such as {unknown[0]!r}")
    # trec_eval orders by score, so places become scores.
    run = {
        query: {document: float(len(ranking) - place) for place, document in enumerate(ranking)}
        for query, ranking in rankings.items()
    }
    measures = {name: ir_measures.parse_measure(spelled) for name, spelled in METRICS.items()}
    found = ir_measures.calc_aggregate(list(measures.values()), {q: dict(d) for q, d in qrels.items()}, run)
    return {name: float(found[measure]) for name, measure in measures.items()}
