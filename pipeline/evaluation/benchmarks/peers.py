"""Ours beside the peers: same weights, texts and machine, every step interleaved between the systems."""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation.benchmarks.passages import documents_of, overlap
from pipeline.evaluation.benchmarks.systems import SystemSpec, command, environment
from pipeline.evaluation.benchmarks.worker import Worker, WorkerError
from pipeline.evaluation.dataset import Dataset
from pipeline.evaluation.metrics import mean_metrics

AGREE = 0.01
"""nDCG@10 of equal weights may differ by this much (ties, order of sums) and still be called equal."""


@dataclass
class Measured:
    """What was seen of one system over all rounds."""

    ingest_s: list[float] = field(default_factory=list)
    load_s: list[float] = field(default_factory=list)
    cold_start_s: list[float] = field(default_factory=list)
    ingest_peak_mb: list[float] = field(default_factory=list)
    query_peak_mb: list[float] = field(default_factory=list)
    latencies_ms: dict[tuple[int, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    seconds: dict[tuple[int, int], float] = field(default_factory=lambda: defaultdict(float))
    errors: dict[tuple[int, int], list[str]] = field(default_factory=lambda: defaultdict(list))
    rankings: dict[int, list[list[str]]] = field(default_factory=dict)
    """By top-N, of one client."""
    versions: dict[str, str] = field(default_factory=dict)
    failure: str | None = None


@dataclass(frozen=True)
class Plan:
    """What is done. ``clients`` and ``top_ns`` are all combined; ``rounds`` start every process anew."""

    dataset: Dataset
    passages: list[dict[str, str]]
    embedder: str
    reranker: str
    dimension: int
    work: Path
    pythons: dict[str, Path]
    url: str | None
    top_ns: Sequence[int]
    clients: Sequence[int]
    rounds: int


def run_peers(
    specs: Sequence[SystemSpec],
    plan: Plan,
    say: Callable[[str], None],
    done: Callable[[dict[str, Measured]], None] = lambda _: None,
) -> dict[str, Measured]:
    """Measures all systems; one that fails is reported as failed and does not stop the others.

    ``done`` gets what there is after every step of a system, so that a run that is cut off is not lost.
    """
    found = {spec.name: Measured() for spec in specs}

    def step(spec: SystemSpec, what: str, work: Callable[[], None]) -> None:
        say(f"{spec.name}: {what}")
        try:
            work()
        except WorkerError as error:
            found[spec.name].failure = str(error)
            say(f"failed: {error}")
        done(found)

    for number in range(1, plan.rounds + 1):
        say(f"round {number} of {plan.rounds}")
        shutil.rmtree(plan.work / "stores", ignore_errors=True)
        live = [spec for spec in specs if found[spec.name].failure is None]
        with ExitStack() as stack:
            workers: dict[str, Worker] = {}
            for spec in live:
                step(spec, "ingest", partial(_ingest, spec, plan, found[spec.name], workers, stack))
            texts = list(plan.dataset.queries.values())
            for top_n in plan.top_ns:
                for clients in plan.clients:
                    for spec in live:
                        if spec.name in workers and found[spec.name].failure is None:
                            what = f"{len(texts)} queries, top {top_n}, {clients} clients"
                            worker, measured = workers[spec.name], found[spec.name]
                            step(spec, what, partial(_query, worker, measured, texts, top_n, clients))
            for spec in live:
                if spec.name in workers and found[spec.name].failure is None:
                    info = workers[spec.name].ask("info", packages=spec.packages)
                    found[spec.name].query_peak_mb.append(info["peak_mb"])
                    found[spec.name].versions = info["versions"]
        for spec in live:
            if found[spec.name].failure is None:
                step(spec, "cold start", partial(_cold_start, spec, plan, found[spec.name]))
    return found


def _start(spec: SystemSpec, plan: Plan) -> Worker:
    folder = plan.work / "stores" / spec.script.removesuffix(".py") / ("same" if spec.same_weights else "other")
    folder.mkdir(parents=True, exist_ok=True)
    configuration = {
        "folder": str(folder.absolute()),
        "embedder": plan.embedder,
        "reranker": plan.reranker,
        "dimension": plan.dimension,
        "url": plan.url,
        "settings": spec.settings,
    }
    logs = plan.work / "logs"
    logs.mkdir(exist_ok=True)
    log = (logs / f"{folder.parent.name}-{folder.name}.log").absolute()
    return Worker(command(spec, plan.pythons[spec.name]), configuration, environment(spec), log)


def _ingest(spec: SystemSpec, plan: Plan, measured: Measured, workers: dict[str, Worker], stack: ExitStack) -> None:
    worker = stack.enter_context(_start(spec, plan))
    measured.load_s.append(worker.ask("load")["seconds"])
    measured.ingest_s.append(worker.ask("ingest", passages=plan.passages)["seconds"])
    measured.ingest_peak_mb.append(worker.ask("info", packages=[])["peak_mb"])
    # The first query may compile or allocate: that is cold start, which is measured apart.
    worker.ask("query", texts=list(plan.dataset.queries.values())[:1], top_n=min(plan.top_ns), clients=1)
    workers[spec.name] = worker


def _query(worker: Worker, measured: Measured, texts: list[str], top_n: int, clients: int) -> None:
    answer = worker.ask("query", texts=texts, top_n=top_n, clients=clients)
    key = (top_n, clients)
    measured.latencies_ms[key] += answer["latencies_ms"]
    measured.seconds[key] += answer["seconds"]
    measured.errors[key] += answer["errors"]
    if clients == 1:
        measured.rankings[top_n] = answer["rankings"]


def _cold_start(spec: SystemSpec, plan: Plan, measured: Measured) -> None:
    """Seconds from starting the process on what was stored to its first answer; files are in the disk's cache."""
    start = time.perf_counter()
    with _start(spec, plan) as worker:
        worker.ask("load")
        answer = worker.ask("query", texts=list(plan.dataset.queries.values())[:1], top_n=min(plan.top_ns), clients=1)
        measured.cold_start_s.append(time.perf_counter() - start)
        if answer["errors"] or not answer["rankings"][0]:
            raise WorkerError(f"the stored collection gave no answer: {answer['errors']}")


def summary(spec: SystemSpec, measured: Measured, plan: Plan, reference: Measured | None) -> dict[str, Any]:
    """One system's results as the JSON file has them. ``reference`` is whose rankings it is compared with.

    What was not measured yet is None.
    """
    result: dict[str, Any] = {"system": spec.name, "store": spec.store, "same_weights": spec.same_weights}
    if plan.url and spec.script != "plain.py":
        result["store"] = "Qdrant server"
    if measured.failure is not None:
        return {**result, "failed": measured.failure}
    runs = []
    for (top_n, clients), latencies in measured.latencies_ms.items():
        p50, p95 = np.percentile(latencies, [50, 95])
        runs.append(
            {
                "top_n": top_n,
                "clients": clients,
                "p50_ms": round(float(p50), 1),
                "p95_ms": round(float(p95), 1),
                "queries_per_s": round(len(latencies) / measured.seconds[top_n, clients], 3),
                "failed_queries": len(measured.errors[top_n, clients]),
                "errors": sorted(set(measured.errors[top_n, clients])),
            }
        )
    quality = {}
    for top_n, rankings in measured.rankings.items():
        by_query = dict(zip(plan.dataset.queries, map(documents_of, rankings), strict=True))
        quality[str(top_n)] = {"ndcg@10": round(mean_metrics(plan.dataset.qrels, by_query)["ndcg@10"], 5)}
        if reference is not None and top_n in reference.rankings:
            quality[str(top_n)]["same_results"] = round(overlap(reference.rankings[top_n], rankings), 4)
    return {
        **result,
        "ingest_passages_per_s": _rounded([len(plan.passages) / seconds for seconds in measured.ingest_s], np.median),
        "ingest_peak_mb": _rounded(measured.ingest_peak_mb, np.max, 0),
        "query_peak_mb": _rounded(measured.query_peak_mb, np.max, 0),
        "load_s": _rounded(measured.load_s, np.median),
        "cold_start_s": _rounded(measured.cold_start_s, np.median),
        "queries": runs,
        "quality": quality,
        "versions": measured.versions,
    }


def _rounded(values: Sequence[float], of: Callable[[Sequence[float]], Any], digits: int | None = 2) -> float | None:
    return round(float(of(values)), digits or None) if values else None


def summaries(specs: Sequence[SystemSpec], found: dict[str, Measured], plan: Plan) -> list[dict[str, Any]]:
    """All systems' results. Those with equal weights are compared with plain sentence-transformers, on which the others
    build, or without it with the first."""
    same = [spec.name for spec in specs if spec.same_weights and found[spec.name].failure is None]
    name = "sentence-transformers" if "sentence-transformers" in same else next(iter(same), None)
    reference = found[name] if name else None
    return [summary(spec, found[spec.name], plan, reference if spec.same_weights else None) for spec in specs]


def agreement(results: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each top-N: whether the systems with equal weights agree in nDCG@10."""
    lines = []
    same = [result for result in results if result["same_weights"] and "failed" not in result]
    for top_n in same[0]["quality"] if same else []:
        values = {r["system"]: r["quality"][top_n]["ndcg@10"] for r in same if top_n in r["quality"]}
        spread = max(values.values()) - min(values.values())
        verdict = "agree" if spread <= AGREE else "DO NOT AGREE"
        lines.append(f"top {top_n}: equal weights {verdict} in nDCG@10, spread {spread:.4f} over {len(values)} systems")
    return lines
