"""After the training: the model for the CPU engine, what it is worth, and where it is used from."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from pipeline.build import build_cascade
from pipeline.closing import close
from pipeline.evaluation.collection import Say
from pipeline.evaluation.statistics import difference
from pipeline.hub import quiet
from pipeline.inference.folder import FILES
from pipeline.interfaces import Reranker
from pipeline.rerankers.cross_encoder import CrossEncoderReranker
from pipeline.rerankers.embedded import EmbeddedReranker
from pipeline.reranking import Scorer
from pipeline.score_cache import ScoreCache
from pipeline.settings import Settings, variable
from pipeline.training import measuring
from pipeline.training.exporting import agreement, agrees, to_engine
from pipeline.training.folder import HUGGING_FACE, TrainingFolder
from pipeline.training.mining import Example
from pipeline.training.starting import Base


@dataclass(frozen=True, slots=True)
class Prepared:
    """What training and measuring need; nothing of it is open."""

    examples: list[Example]
    mined: Mapping[str, int]
    choose: list[measuring.Case]
    report: list[measuring.Case]
    queries: int
    tokenizer: Tokenizer


def finish(
    folder: TrainingFolder, base: Base, ready: Prepared, cache: ScoreCache, settings: Settings, say: Say
) -> dict[str, Any]:
    """Exports the model in ``work``, measures before and after, chooses alpha, and brings all of it to its place."""
    model, engine_folder = folder.work / HUGGING_FACE, folder.work / "engine"
    trained = CrossEncoderReranker(str(model), device=settings.device)
    engine = _exported(model, trained, engine_folder, folder.path.resolve().name, ready, say)
    new = trained if engine is None else EmbeddedReranker(engine_folder)
    used = _used(settings, model, engine_folder if engine is not None else None)
    outcome = _measured(base, new, ready, cache, used, say)
    files = {f"{HUGGING_FACE}/{path.name}": path for path in sorted(model.glob("*.safetensors"))}
    if engine is not None:
        _set_alpha(engine_folder / "config.json", outcome["alpha"]["after"])
        files = {name: engine_folder / name for name in FILES} | files
    for name in FILES if engine is not None else ():
        shutil.copyfile(engine_folder / name, folder.path / name)
    shutil.copytree(model, folder.path / HUGGING_FACE, dirs_exist_ok=True)
    return outcome | {
        "out": str(folder.path.resolve()),
        "base": base.name,
        "queries": {"train": ready.queries, "choose": len(ready.choose), "report": measuring.distinct(ready.report)},
        "top_n": settings.top_n,
        "mined": dict(ready.mined),
        "engine": engine,
        "env": _env(folder.path.resolve(), engine is not None, outcome["alpha"]["after"]),
        "sha256": {name: _sha256(path) for name, path in files.items()},
    }


def _exported(
    model: Path, trained: Reranker, folder: Path, name: str, ready: Prepared, say: Say
) -> dict[str, float] | None:
    """How the engine's model agrees with torch's; None where there is none that could stand for it."""
    instead = "use it by RAG_RERANKER=cross-encoder and RAG_ENGINE=torch"
    try:
        with quiet():
            to_engine(model, folder, name)
        exact, rounded = (Scorer(one, tokenizer=ready.tokenizer) for one in (trained, EmbeddedReranker(folder)))
        found = agreement(exact, rounded, ready.report, say)
    except Exception as error:  # noqa: BLE001 - a converter raises whatever a model that it does not know makes it
        say(f"no model for the CPU engine, {instead}: {error}")
        return None
    if not agrees(found):
        say(f"the int8 model differs too much from the trained one, {instead}")
        return None
    return found


def _used(settings: Settings, model: Path, engine_folder: Path | None) -> Settings:
    """The settings with which queries will use it."""
    if engine_folder is None:
        return settings.updated(reranker="cross-encoder", reranker_model=str(model), engine="torch")
    return settings.updated(reranker="embedded", reranker_model=str(engine_folder))


def _measured(
    base: Base, new: Reranker, ready: Prepared, cache: ScoreCache, used: Settings, say: Say
) -> dict[str, Any]:
    """nDCG@10 of first stage, before and after on the queries to report on: before with its own weight, after with the
    one chosen on those to choose by; with the fusion of queries, and behind the first step of a cascade, if they will
    have one."""
    cascade = build_cascade(used)
    first_step = None if cascade is None else cascade.reranker
    try:
        quick = None if first_step is None else Scorer(first_step, tokenizer=ready.tokenizer)
        return _compared(base, new, ready, cache, quick, used, say)
    finally:
        close(first_step)


def _compared(
    base: Base, new: Reranker, ready: Prepared, cache: ScoreCache, quick: Scorer | None, used: Settings, say: Say
) -> dict[str, Any]:
    both = [*ready.choose, *ready.report]
    choose, report = slice(None, len(ready.choose)), slice(len(ready.choose), None)
    first = measuring.ndcg(ready.report, None)
    of = both if quick is None else measuring.after_first_step(both, quick)
    ndcg: dict[str, float | None] = {"first_stage": _mean(first)}
    alphas: dict[str, float | None] = {}
    values = {}
    usual = (base.reranker or new).default_alpha
    for name, reranker in (("before", base.reranker), ("after", new)):
        ndcg[name] = ndcg[f"{name}_alone"] = alphas[name] = None
        if reranker is None:
            continue
        scores = measuring.scored(Scorer(reranker, tokenizer=ready.tokenizer, cache=cache), both, say, name)
        ndcg[f"{name}_alone"] = _mean(measuring.ndcg(ready.report, scores[report]))
        if quick is not None:
            scores = measuring.in_second_step(of, scores, used.top_k)
        # Who uses the model that there was has it with its own weight.
        alpha = usual if name == "before" else measuring.best_alpha(of[choose], scores[choose], usual, used.fusion)
        alphas[name] = alpha
        values[name] = measuring.ndcg(of[report], scores[report], alpha, used.fusion)
        ndcg[name] = _mean(values[name])
    against = {"the model that it started from": values.get("before"), "the first stage alone": first}
    new_values = measuring.by_query(ready.report, values["after"])
    tests = {
        than: difference(measuring.by_query(ready.report, old), new_values)
        for than, old in against.items()
        if old is not None
    }
    by_data: dict[str, list[int]] = {}
    for place, case in enumerate(ready.report):
        by_data.setdefault(case.source, []).append(place)
    return {
        "cascade": quick is not None,
        "ndcg@10": ndcg,
        "alpha": alphas,
        "against": {than: {**test, "verdict": measuring.verdict(test)} for than, test in tests.items()},
        "by_data": {
            name: {
                "queries": len(places),
                "first_stage": _mean([first[i] for i in places]),
                "after": _mean([values["after"][i] for i in places]),
            }
            for name, places in by_data.items()
        },
    }


def _env(out: Path, engine: bool, alpha: float) -> dict[str, str]:
    """The lines for ``.env``; only the engine's folder carries its weight against the first stage.

    What the engine cannot answer for stays under PyTorch: it would be converted at first use otherwise, by a check
    that knows nothing of the queries on which the two came apart.
    """
    if engine:
        return {variable("reranker"): "embedded", variable("reranker_model"): str(out)}
    return {
        variable("reranker"): "cross-encoder",
        variable("reranker_model"): str(out / HUGGING_FACE),
        variable("engine"): "torch",
        variable("alpha"): f"{alpha:g}",
    }


def _set_alpha(path: Path, alpha: float) -> None:
    config = {**json.loads(path.read_text(encoding="utf-8")), "default_alpha": alpha}
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 5)
