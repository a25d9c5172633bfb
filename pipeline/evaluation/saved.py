"""Runs on disk: TREC format for other tools, JSON for ours; and two of them compared."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from pipeline.errors import SettingsError
from pipeline.evaluation.metrics import metrics_by_query
from pipeline.evaluation.run import Evaluation, RunResult
from pipeline.evaluation.summary import against, percentiles

_QRELS = "qrels.trec"


@dataclass(frozen=True, slots=True)
class SavedRun:
    """One run as it was saved."""

    label: str
    dataset: str
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    values: dict[str, dict[str, float]]
    """Metric -> query -> value."""
    latency_ms: dict[str, float]
    """Query -> time of the whole query."""
    made: dict[str, Any]
    """When, and with what settings."""
    path: str
    """Where it is kept."""


def save(evaluation: Evaluation, outcome: Mapping[str, Any], folder: Path) -> Path:
    """Writes a new folder under ``folder`` and returns it: the judgements, and each run as .trec and .json.

    An id with white space is percent-encoded in the TREC files, whose fields it would break.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    into = folder / f"{_slug(evaluation.dataset.name)}-{stamp}"
    into.mkdir(parents=True)
    qrels = evaluation.dataset.qrels
    _write(
        into / _QRELS,
        "".join(
            f"{_escaped(query)} 0 {_escaped(document)} {grade}\n"
            for query, grades in qrels.items()
            for document, grade in grades.items()
        ),
    )
    made = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": version("two-stage-rag"),
        "embedder": evaluation.embedder,
        "chunking": evaluation.chunking,
        "chunk_tokens": evaluation.settings.chunk_tokens,
        "chunk_overlap": evaluation.settings.chunk_overlap,
        "reranker_model": evaluation.settings.reranker_model,
        "cascade": evaluation.settings.cascade,
    }
    _write(into / "evaluation.json", json.dumps({**outcome, "made": made}, ensure_ascii=False, indent=1))
    for place, (run, summary) in enumerate(zip(evaluation.runs, outcome["runs"], strict=True), 1):
        stem = f"{place}-{_slug(run.spec.label)}"
        _write(into / f"{stem}.trec", _trec(run, stem))
        record = {
            "label": run.spec.label,
            "dataset": evaluation.dataset.name,
            "made": made,
            "summary": summary,
            "queries": evaluation.dataset.queries,
            "values": run.values,
            "latency_ms": {id_: round(answer.latency_ms["total"], 3) for id_, answer in run.answers.items()},
        }
        _write(into / f"{stem}.json", json.dumps(record, ensure_ascii=False))
    return into


def load(path: Path) -> SavedRun:
    """Reads a saved run, named by its .json or .trec file or without the ending.

    The metrics are computed again from the .trec file and the judgements beside it.

    Raises:
        SettingsError: it is a folder, a file is missing or malformed, or the ranking is not the one that the metrics
            were computed of.
    """
    if path.is_dir():
        runs = sorted(one.name for one in path.glob("*.trec") if one.name != _QRELS)
        raise SettingsError(f"{path} is a folder: name one of the runs in it ({', '.join(runs) or 'there are none'})")
    stem = path.with_suffix("") if path.suffix in (".json", ".trec") else path
    trec, qrels_path = Path(f"{stem}.trec"), stem.parent / _QRELS
    try:
        record = json.loads(Path(f"{stem}.json").read_text(encoding="utf-8"))
        values, queries = record["values"], record["queries"]
        saved = SavedRun(
            record["label"],
            record["dataset"],
            queries,
            _read_qrels(qrels_path),
            values,
            record["latency_ms"],
            dict(record.get("made", {})),
            str(stem),
        )
        rankings = _read_trec(trec)
        spelled = _spelled(values)
    except OSError as error:
        raise SettingsError(
            f"{path} is no saved run: {error.filename} cannot be read. rag eval prints the folder that it saves to"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise SettingsError(f"{path} is no saved run, or was changed: {error!r}") from error
    if set(saved.qrels) != set(queries) or any(set(of) != set(queries) for of in values.values()):
        raise SettingsError(f"{qrels_path} and {stem}.json are not of the same queries: were files swapped?")
    again = metrics_by_query(saved.qrels, rankings, spelled)
    for metric, by_query in again.items():
        for query, value in by_query.items():
            if abs(value - values[metric][query]) > 1e-6:
                raise SettingsError(
                    f"{trec} does not give the metrics in {stem.name}.json ({metric} of query {query}: {value:.4f}, "
                    f"not {values[metric][query]:.4f}): the ranking or {qrels_path.name} was changed or swapped"
                )
    return saved


def compare(a: SavedRun, b: SavedRun) -> dict[str, Any]:
    """B against A, query by query; positive differences are in B's favour.

    Raises:
        SettingsError: the runs are not of the same queries, texts and judgements.
    """
    if a.qrels != b.qrels:
        alone = sorted(set(a.qrels) ^ set(b.qrels))
        what = f"{len(alone)} queries are in one of them alone, such as {alone[0]!r}" if alone else "judgements differ"
        raise SettingsError(
            f"the runs cannot be compared: {what} ({a.dataset}: {len(a.qrels)} queries, {b.dataset}: {len(b.qrels)})"
        )
    for id_, text in a.queries.items():
        if text != b.queries[id_]:
            raise SettingsError(
                f"the runs cannot be compared: query {id_} is {text[:80]!r} in {a.path} and "
                f"{b.queries[id_][:80]!r} in {b.path}"
            )
    shared = [metric for metric in a.values if metric in b.values]
    ordered = {metric: {id_: b.values[metric][id_] for id_ in a.values[metric]} for metric in shared}
    differences = against({metric: a.values[metric] for metric in shared}, ordered)
    changes = {id_: ordered["ndcg@10"][id_] - a.values["ndcg@10"][id_] for id_ in a.queries}
    worst = sorted((id_ for id_ in changes if changes[id_] < 0), key=lambda id_: changes[id_])
    return {
        "dataset": a.dataset,
        "queries": len(a.qrels),
        "a": _side(a, shared),
        "b": _side(b, shared),
        "made": {
            name: [run.made.get(name) for run in (a, b)]
            for name in {**a.made, **b.made}
            if name != "at" and a.made.get(name) != b.made.get(name)
        },
        "difference": differences,
        "better": sum(change > 0 for change in changes.values()),
        "worse": len(worst),
        "equal": sum(change == 0 for change in changes.values()),
        "most_worse": [
            {"query": a.queries[id_], "ndcg@10": [round(run.values["ndcg@10"][id_], 5) for run in (a, b)]}
            for id_ in worst[:5]
        ],
    }


def _side(run: SavedRun, metrics: list[str]) -> dict[str, Any]:
    means = {metric: round(float(np.mean(list(run.values[metric].values()))), 5) for metric in metrics}
    return {"run": run.label, "path": run.path, **means, "latency_ms": percentiles(run.latency_ms.values())}


def _spelled(values: Mapping[str, Any]) -> dict[str, str]:
    """The names of ir-measures for ours."""
    names = {"ndcg": "nDCG", "mrr": "RR", "recall": "R", "precision": "P", "map": "AP"}
    found = {}
    for metric in values:
        name, at, k = metric.partition("@")
        found[metric] = names[name] + at + k
    return found


def _trec(run: RunResult, tag: str) -> str:
    # Scores that fall with the place: tools order by them, and those of the pipeline may tie.
    return "".join(
        f"{_escaped(query)} Q0 {_escaped(document)} {place} {len(answer.ranking) - place + 1} {tag}\n"
        for query, answer in run.answers.items()
        for place, document in enumerate(answer.ranking, 1)
    )


def _read_trec(path: Path) -> dict[str, list[str]]:
    scored: dict[str, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        query, _, document, _, score, _ = line.split()
        scored.setdefault(_unescaped(query), {})[_unescaped(document)] = float(score)
    return {query: sorted(of, key=lambda document: -of[document]) for query, of in scored.items()}


def _read_qrels(path: Path) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        query, _, document, grade = line.split()
        qrels.setdefault(_unescaped(query), {})[_unescaped(document)] = int(grade)
    return qrels


def _escaped(id_: str) -> str:
    # Letters of any language stay readable; white space and "%" would not come back.
    return "".join(
        c if not c.isspace() and c != "%" and c.isprintable() else quote(c, safe="", errors="surrogatepass")
        for c in id_
    )


def _unescaped(id_: str) -> str:
    return unquote(id_, errors="surrogatepass")


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text).strip("-.") or "run"


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
