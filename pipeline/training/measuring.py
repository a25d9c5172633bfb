"""nDCG@10 of a reranker on queries that it was not trained on, over the candidates of the first stage."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.cascade import first_step, second_step
from pipeline.errors import SettingsError
from pipeline.evaluation.collection import Say
from pipeline.evaluation.metrics import metrics_by_query
from pipeline.evaluation.statistics import LEVEL, nearest_as_good
from pipeline.reranking import Scorer
from pipeline.scoring import final_scores, first_stage_scores, order
from pipeline.training.sources import Source
from pipeline.training.splitting import folded
from pipeline.types import Candidate, RerankScore, StageFusion
from pipeline.windows import passages_of

_ALPHAS = [round(0.05 * step, 2) for step in range(1, 21)]
_METRIC = {"ndcg@10": "nDCG@10"}
_SAY_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Case:
    """One query that was kept back, with what there is to rerank."""

    source: str
    id: str
    query: str
    candidates: tuple[Candidate, ...]
    grades: Mapping[str, int]


Scores = Sequence[Sequence[RerankScore | None]]
"""For each case a score a candidate."""


def cases(source: Source, ids: Iterable[str], place: int) -> list[Case]:
    """The queries ``ids`` of the source; sources may have equal names, so ``place`` tells their queries apart."""
    return [
        Case(
            source.name,
            f"{place}/{source.name}/{id_}",
            source.queries[id_],
            tuple(source.candidates(id_)),
            source.qrels[id_],
        )
        for id_ in ids
    ]


def scored(scorer: Scorer, of: Sequence[Case], say: Say, who: str) -> Scores:
    """The candidates' scores, as in a query: long passages in windows, equal ones once."""
    said = time.monotonic()
    found = []
    for done, case in enumerate(of):
        if time.monotonic() - said > _SAY_EVERY_S:
            said = time.monotonic()
            say(f"{who}: {done} of {len(of)} kept-back queries reranked")
        found.append(scorer.score(case.query, passages_of(case.candidates)))
    return found


def after_first_step(of: Sequence[Case], quick: Scorer) -> list[Case]:
    """The cases with their candidates as the first step of a cascade, ``quick``, leaves them."""
    return [
        replace(
            case,
            candidates=tuple(first_step(case.query, case.candidates, passages_of(case.candidates), quick, None)),
        )
        for case in of
    ]


def in_second_step(of: Sequence[Case], scores: Scores, least: int) -> Scores:
    """The scores that a cascade's second step would come to: those of the candidates that stand best."""
    found = []
    for case, its in zip(of, scores, strict=True):
        read = set(second_step(case.candidates, least))
        found.append([score if place in read else None for place, score in enumerate(its)])
    return found


def ndcg(of: Sequence[Case], scores: Scores | None, alpha: float = 1.0, fusion: StageFusion = "linear") -> list[float]:
    """nDCG@10 of each case, in the final order with this weight; of the first stage's order without scores."""
    rankings = {}
    for place, case in enumerate(of):
        rerank = None if scores is None else scores[place]
        final = (
            first_stage_scores(case.candidates)
            if rerank is None
            else final_scores(case.candidates, rerank, alpha=alpha, fusion=fusion)
        )
        places = order(case.candidates, final, rerank)
        rankings[case.id] = tuple(dict.fromkeys(case.candidates[i].chunk.document_id for i in places))
    values = metrics_by_query({case.id: case.grades for case in of}, rankings, _METRIC)["ndcg@10"]
    return [values[case.id] for case in of]


def best_alpha(of: Sequence[Case], scores: Scores, usual: float, fusion: StageFusion = "linear") -> float:
    """The weight, in steps of 0.05, with the highest mean, or the nearest to the ``usual`` one that is as good."""
    values = {alpha: by_query(of, ndcg(of, scores, alpha, fusion)) for alpha in (*_ALPHAS, usual)}
    return nearest_as_good(values, usual)


def distinct(of: Sequence[Case]) -> int:
    """Number of distinct queries."""
    return len({folded(case.query) for case in of})


def by_query(of: Sequence[Case], values: Sequence[float]) -> list[float]:
    """The mean value of each distinct query: clicks repeat queries, and a test takes its values to be independent."""
    found: dict[str, list[float]] = {}
    for case, value in zip(of, values, strict=True):
        found.setdefault(folded(case.query), []).append(value)
    return [float(np.mean(its)) for its in found.values()]


def verdict(test: Mapping[str, float]) -> str:
    """ "better" or "worse" where chance is an unlikely reason (p < 0.05), else "no difference"."""
    if test["p"] >= LEVEL or test["difference"] == 0:
        return "no difference"
    return "better" if test["difference"] > 0 else "worse"


def check(of: Sequence[Case]) -> None:
    """Refuses cases that no reranker can do well or badly in.

    Raises:
        SettingsError: the first stage found none of the relevant documents of any query.
    """
    if not any(case.grades.get(one.chunk.document_id, 0) > 0 for case in of for one in case.candidates):
        raise SettingsError(
            "the first stage finds no relevant document of any query that was kept back: do queries and corpus belong "
            "together?"
        )
