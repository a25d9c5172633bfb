"""What an evaluation comes to: the object that ``rag eval --json`` prints."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.evaluation.metrics import mean_metrics
from pipeline.evaluation.run import STAGES, Evaluation, RunResult
from pipeline.evaluation.statistics import bootstrap_interval, difference
from pipeline.settings import Settings

CURVE = (1, 2, 3, 5, 10, 15, 20, 30, 40, 50, 70, 100, 150, 200, 300, 500, 700, 1000)
"""Where recall@N is computed, as far as the first stage is deep."""
# These run on one's own machine: no price a call.
_UNPRICED = frozenset({"none", "embedded", "embedded-cross-encoder", "bge", "cross-encoder"})
# What Cohere bills as one search.
_DOCUMENTS_A_SEARCH = 100


def outcome(evaluation: Evaluation) -> dict[str, Any]:
    """Names, means, intervals, tests, latencies and costs of all runs; see INTERFACE.md for the names."""
    first = evaluation.runs[0]
    return {
        "dataset": evaluation.dataset.name,
        "queries": len(evaluation.dataset.queries),
        "documents": evaluation.documents,
        "chunking": evaluation.chunking,
        "runs": [_run(evaluation, run, None if run is first else first) for run in evaluation.runs],
        "first_stage": {
            mode: {"recall": recall_curve(evaluation, run)} for mode, run in evaluation.first_stages.items()
        },
        "warnings": warnings(evaluation),
    }


def _run(evaluation: Evaluation, run: RunResult, first: RunResult | None) -> dict[str, Any]:
    answers = list(run.answers.values())
    spec = run.spec
    found: dict[str, Any] = {"search": spec.search, "reranker": spec.reranker, "top_n": spec.top_n}
    found |= {"alpha": run.alpha, "threshold": spec.threshold, "label": spec.label}
    found |= {name: round(float(np.mean(list(values.values()))), 5) for name, values in run.values.items()}
    found["latency_ms"] = percentiles(answer.latency_ms["total"] for answer in answers) | {
        stage: percentiles(answer.latency_ms[stage] for answer in answers) for stage in STAGES
    }
    found["interval_95"] = {
        name: [round(bound, 5) for bound in bootstrap_interval(list(values.values()))]
        for name, values in run.values.items()
    }
    found["against_first"] = None if first is None else against(first.values, run.values)
    found["first_stage"] = stage_one(evaluation, run)
    found["hits"] = round(float(np.mean([answer.hits for answer in answers])), 2)
    found["answered"] = round(float(np.mean([answer.hits > 0 for answer in answers])), 5)
    seconds = sum(answer.latency_ms["rerank"] for answer in answers) / 1e3
    pairs = sum(len(answer.scores) for answer in answers)
    found["reranked"] = round(pairs / len(answers), 2)
    found["pairs_per_second"] = round(pairs / seconds, 1) if pairs and seconds else None
    found["cost_per_1000_queries"] = cost(evaluation.settings, run)
    return found


def against(
    first: Mapping[str, Mapping[str, float]], second: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """By metric: the difference of the means, its 95 % interval, and p of the paired randomisation test."""
    return {name: difference(list(first[name].values()), list(second[name].values())) for name in second}


def stage_one(evaluation: Evaluation, run: RunResult) -> dict[str, float]:
    """The run's own candidates before reranking: "recall" of all of them is the ceiling of every order."""
    rankings = _firsts(run)
    deepest = max(1, *(len(ranking) for ranking in rankings.values()))
    metrics = {"recall": f"R@{deepest}", "ndcg@10": "nDCG@10", "mrr@10": "RR@10"}
    found = mean_metrics(evaluation.dataset.qrels, rankings, metrics)
    return {name: round(value, 5) for name, value in found.items()}


def recall_curve(evaluation: Evaluation, run: RunResult, *, first: bool = True) -> dict[str, float]:
    """Recall@N of the first stage's order, or of the final one."""
    rankings = _firsts(run) if first else {id_: answer.ranking for id_, answer in run.answers.items()}
    metrics = {str(n): f"R@{n}" for n in CURVE if n <= run.spec.top_n}
    return {n: round(value, 5) for n, value in mean_metrics(evaluation.dataset.qrels, rankings, metrics).items()}


def percentiles(values: Iterable[float]) -> dict[str, Any]:
    """p50 and p95."""
    p50, p95 = np.percentile(list(values), [50, 95])
    return {"p50": round(float(p50), 2), "p95": round(float(p95), 2)}


def cost(settings: Settings, run: RunResult) -> float | None:
    """Price of 1,000 queries in the currency of the settings; None where no price is known or none is due."""
    if run.spec.reranker in _UNPRICED or (settings.rerank_price is None and settings.rerank_token_price is None):
        return None
    answers = list(run.answers.values())
    searches = float(np.mean([math.ceil(len(answer.scores) / _DOCUMENTS_A_SEARCH) for answer in answers]))
    tokens = float(np.mean([answer.tokens for answer in answers]))
    total = searches * (settings.rerank_price or 0.0) + tokens / 1e3 * (settings.rerank_token_price or 0.0)
    return round(total, 4)


def warnings(evaluation: Evaluation) -> list[str]:
    """What is missing, and what makes the figures doubtful."""
    found = [f"{spec.label} failed and is left out: {error}" for spec, error in evaluation.failed.items()]
    for name, calibration in evaluation.calibrations.items():
        same = calibration.dataset == evaluation.dataset.name
        found.append(
            f"{name} is calibrated ({calibration.method}, on {calibration.queries} queries of {calibration.dataset})"
            + (", and this is that dataset: what a threshold does here is flattered" if same else "")
        )
    recall = max(
        mean_metrics(evaluation.dataset.qrels, _firsts(run), {"recall": "R@100"})["recall"]
        for run in evaluation.first_stages.values()
    )
    # With few documents chance itself finds much.
    chance = 100 / max(1, evaluation.documents)
    if chance <= 0.2 and recall <= 1.5 * chance:
        found.append(
            f"recall@100 is {recall:.3f}, no better than a random order of the {evaluation.documents} documents "
            f"({chance:.3f}): do the judgements belong to this corpus, and is its language one that the embedder knows?"
        )
    if len(evaluation.dataset.queries) < 50:
        found.append(
            f"{len(evaluation.dataset.queries)} queries are few: look at the intervals before you believe a difference"
        )
    return found


def _firsts(run: RunResult) -> dict[str, Sequence[str]]:
    return {id_: answer.first for id_, answer in run.answers.items()}
