"""``rag tune``: the settings that do best within a time budget.

They are chosen on one half of the queries and reported on the other: the best of many looks better than it is on the
queries that it was chosen by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from pipeline.errors import SettingsError
from pipeline.evaluation.collection import Say
from pipeline.evaluation.metrics import metrics_at
from pipeline.evaluation.plan import RunSpec, cross
from pipeline.evaluation.run import Answer, Evaluation, RunResult, evaluate
from pipeline.evaluation.statistics import difference, nearest_as_good
from pipeline.evaluation.summary import percentiles
from pipeline.settings import Settings, variable

SEARCHES = ("hybrid", "dense", "sparse")
TOP_NS = (10, 20, 50, 100)
ALPHAS = (0.1, 0.25, 0.5, 0.75, 1.0)
_FEWEST = 20
# A threshold may cost this share of the recall that there was without it.
_RECALL_LOSS = 0.01
_LOWEST = 0.01


@dataclass(frozen=True, slots=True)
class Trial:
    """One run with one size of chunks."""

    chunk_tokens: int
    run: RunResult

    def mean(self, metric: str, ids: Iterable[str]) -> float:
        """Of these queries."""
        return float(np.mean([self.run.values[metric][id_] for id_ in ids]))

    def latency(self, ids: Iterable[str]) -> dict[str, float]:
        """p50 and p95 in ms over these queries."""
        return percentiles(self.run.answers[id_].latency_ms["total"] for id_ in ids)


def tune(
    name: str,
    settings: Settings,
    *,
    budget_ms: float,
    metric: str = "ndcg@10",
    searches: Sequence[str] = (),
    rerankers: Sequence[str] = (),
    top_ns: Sequence[int] = (),
    alphas: Sequence[float] = (),
    chunk_tokens: Sequence[int] = (),
    max_queries: int | None = None,
    say: Say,
) -> dict[str, Any]:
    """Tries every combination over the dataset called ``name``; the result is what ``rag tune --json`` prints.

    The budget holds for p95 of a whole query. The settings as they are now are the run to beat.

    Raises:
        SettingsError: an option is wrong, there are too few queries to split, or nothing answers within the budget.
    """
    metrics = metrics_at([settings.top_k])
    if metric not in metrics:
        raise SettingsError(f"--metric {metric!r}: there are {', '.join(metrics)}")
    if chunk_tokens and Path(name).is_file():
        raise SettingsError("--chunk-tokens needs a dataset with a corpus of its own: your collection is cut already")
    depths = [n for n in top_ns or TOP_NS if n >= settings.top_k]
    if not depths:
        raise SettingsError(f"--top-n must be at least RAG_TOP_K ({settings.top_k})")
    now = cross(settings, rerankers=[settings.reranker])
    tried = cross(settings, searches=searches or SEARCHES, rerankers=rerankers, top_ns=depths, alphas=alphas or ALPHAS)
    if not alphas:  # beside those that are always tried, the one that each reranker has anyway
        tried += [replace(spec, alpha=settings.alpha) for spec in tried if spec.reranker != "none"]
    # The threshold is chosen last: it drops hits and changes no order.
    specs = list(dict.fromkeys(replace(spec, threshold=None) for spec in (*now, *tried)))
    trials: list[Trial] = []
    evaluation: Evaluation | None = None
    for size in dict.fromkeys([settings.chunk_tokens, *chunk_tokens]):
        evaluation = evaluate(
            name,
            resized(settings, size),
            specs,
            metrics=metrics,
            max_queries=max_queries,
            check=lambda dataset: split(dataset.queries),
            say=say,
        )
        if not trials and specs[0] in evaluation.failed:  # the others are compared with it
            raise evaluation.failed[specs[0]]
        trials += [Trial(size, run) for run in evaluation.runs]
    assert evaluation is not None
    return report(evaluation, trials, settings, budget_ms=budget_ms, metric=metric)


def resized(settings: Settings, chunk_tokens: int) -> Settings:
    """The settings with chunks of this size, whose overlap is a quarter of it at most.

    The size as it is keeps its overlap: that is what the others are to beat.
    """
    if chunk_tokens == settings.chunk_tokens:
        return settings
    return settings.updated(chunk_tokens=chunk_tokens, chunk_overlap=min(settings.chunk_overlap, chunk_tokens // 4))


def report(
    evaluation: Evaluation, trials: Sequence[Trial], settings: Settings, *, budget_ms: float, metric: str
) -> dict[str, Any]:
    """Chooses among the trials, of which the first is the one with the settings as they are.

    Raises:
        SettingsError: too few queries, or nothing within the budget.
    """
    tuned_on, held_out = split(evaluation.dataset.queries)
    best = choose(trials, tuned_on, budget_ms=budget_ms, metric=metric)
    qrels = evaluation.dataset.qrels
    cut = threshold(best.run, qrels, tuned_on, settings.top_k)
    old, new = ([trial.run.values[metric][id_] for id_ in held_out] for trial in (trials[0], best))
    gain = difference(old, new)
    return {
        "dataset": evaluation.dataset.name,
        "metric": metric,
        "budget_ms": budget_ms,
        "queries": {"tuned_on": len(tuned_on), "held_out": len(held_out)},
        "tried": len(trials),
        "within_budget": len(_within(trials, tuned_on, budget_ms)),
        "now": _side(trials[0], metric, held_out),
        "chosen": _side(best, metric, held_out),
        "difference": gain["difference"],
        "interval_95": [gain["low"], gain["high"]],
        "p": gain["p"],
        "threshold": None
        if cut is None
        else {
            "value": cut,
            **_kept(best.run, qrels, held_out, settings.top_k, cut),
        },
        "lowest_threshold": _kept(best.run, qrels, tuned_on, settings.top_k, _LOWEST),
        "env": env(best, settings, cut),
    }


def split(ids: Iterable[str]) -> tuple[list[str], list[str]]:
    """Two halves, the same ones at every call.

    Raises:
        SettingsError: there are too few for two halves that mean anything.
    """
    shuffled = sorted(ids)
    if len(shuffled) < _FEWEST:
        raise SettingsError(f"{len(shuffled)} queries are too few to tune on a half of them: at least {_FEWEST}")
    Random(0).shuffle(shuffled)
    half = len(shuffled) // 2
    return shuffled[:half], shuffled[half:]


def choose(trials: Sequence[Trial], ids: Sequence[str], *, budget_ms: float, metric: str) -> Trial:
    """The best within the budget; of equally good ones the fastest.

    Its weight is the nearest to the one of the settings that is as good: on ties the time would choose it.

    Raises:
        SettingsError: none is within it.
    """
    within = _within(trials, ids, budget_ms)
    if not within:
        fastest = min(trials, key=lambda trial: trial.latency(ids)["p95"])
        raise SettingsError(
            f"nothing answers within {budget_ms:g} ms (p95); the fastest is {fastest.run.spec.label} with "
            f"{fastest.latency(ids)['p95']:.0f} ms: raise --budget-ms or try a smaller --top-n"
        )
    best = max(within, key=lambda trial: (round(trial.mean(metric, ids), 9), -trial.latency(ids)["p50"]))

    def but_for_alpha(trial: Trial) -> tuple[int, RunSpec]:
        return trial.chunk_tokens, replace(trial.run.spec, alpha=None)

    alike = [trial for trial in within if but_for_alpha(trial) == but_for_alpha(best)]
    weights = {trial.run.alpha: trial for trial in alike}
    as_set = [trial.run.alpha for trial in alike if trial.run.spec.alpha == trials[0].run.spec.alpha]
    values = {
        weight: [one.run.values[metric][id_] for id_ in ids] for weight, one in weights.items() if weight is not None
    }
    return weights[nearest_as_good(values, as_set[0])] if values and as_set and as_set[0] is not None else best


def _within(trials: Sequence[Trial], ids: Sequence[str], budget_ms: float) -> list[Trial]:
    return [trial for trial in trials if trial.latency(ids)["p95"] <= budget_ms]


def threshold(run: RunResult, qrels: Mapping[str, Mapping[str, int]], ids: Sequence[str], top_k: int) -> float | None:
    """The highest threshold, in hundredths, that keeps 99 % of the relevant hits; None if none does.

    Without a reranker there are no probabilities, and so none.
    """
    for hundredths in range(99, 0, -1):
        kept = _kept(run, qrels, ids, top_k, hundredths / 100)
        if kept["relevant_kept"] is not None and kept["relevant_kept"] >= 1 - _RECALL_LOSS:
            return hundredths / 100
    return None


def _kept(
    run: RunResult, qrels: Mapping[str, Mapping[str, int]], ids: Sequence[str], top_k: int, cut: float
) -> dict[str, float | None]:
    """Shares of relevant and irrelevant hits among the first ``top_k`` that pass; None where there are none."""
    passed: dict[bool, list[bool]] = {True: [], False: []}
    for id_ in ids:
        for document, probability in _first(run.answers[id_], top_k):
            passed[qrels[id_].get(document, 0) > 0].append(probability >= cut)
    relevant, irrelevant = (round(float(np.mean(of)), 5) if of else None for of in (passed[True], passed[False]))
    return {"relevant_kept": relevant, "irrelevant_kept": irrelevant}


def _first(answer: Answer, top_k: int) -> Sequence[tuple[str, float]]:
    """Scores are in the order of the hits."""
    return answer.scores[:top_k]


def env(best: Trial, settings: Settings, cut: float | None) -> dict[str, str]:
    """Variable -> value, as ``.env`` takes them."""
    spec = best.run.spec
    values: dict[str, Any] = {"search": spec.search, "reranker": spec.reranker}
    if spec.reranker != "none":
        values |= {"top_n": spec.top_n, "alpha": best.run.alpha}
    if settings.reranker_model != settings.with_reranker(spec.reranker).reranker_model:
        values["reranker_model"] = ""  # else the model of the one before would be asked for
    if cut is not None:
        values["threshold"] = cut
    elif settings.threshold is not None:
        values["threshold"] = ""  # it was meant for another reranker, and all runs were without it
    if best.chunk_tokens != settings.chunk_tokens:
        values["chunk_tokens"] = best.chunk_tokens
        values["chunk_overlap"] = resized(settings, best.chunk_tokens).chunk_overlap
    return {
        variable(field): f"{value:g}" if isinstance(value, float) else str(value) for field, value in values.items()
    }


def _side(trial: Trial, metric: str, ids: Sequence[str]) -> dict[str, Any]:
    spec = trial.run.spec
    return {
        "run": spec.label,
        "search": spec.search,
        "reranker": spec.reranker,
        "top_n": spec.top_n,
        "alpha": trial.run.alpha,
        "chunk_tokens": trial.chunk_tokens,
        metric: round(trial.mean(metric, ids), 5),
        "latency_ms": trial.latency(ids),
    }
