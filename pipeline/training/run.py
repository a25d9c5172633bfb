"""``rag train-reranker`` from data to model folder, in steps that a second run does not repeat."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from pipeline.errors import SettingsError
from pipeline.evaluation.collection import Say
from pipeline.hub import quiet
from pipeline.inference.folder import FILES
from pipeline.interfaces import Reranker
from pipeline.rerankers.cross_encoder import CrossEncoderReranker
from pipeline.rerankers.embedded import EmbeddedReranker
from pipeline.reranking import Scorer
from pipeline.score_cache import ScoreCache
from pipeline.settings import Settings, variable
from pipeline.training import measuring
from pipeline.training.card import write_card
from pipeline.training.exporting import agreement, agrees, to_engine
from pipeline.training.fitting import Plan, fit, require_extra
from pipeline.training.folder import TrainingFolder, data_hash, training_folder
from pipeline.training.mining import Example, Judge, Miner, read_examples, write_examples
from pipeline.training.sources import Sources
from pipeline.training.splitting import split
from pipeline.training.starting import Base, open_base, open_teacher

_CACHED_SCORES = 100_000_000
_HUGGING_FACE = "huggingface"
# What examples and figures depend on beside the arguments.
_SETTINGS = ("embedder", "embedding_model", "search", "hybrid_fusion", "top_n", "chunk_tokens", "chunk_overlap")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What training and measuring need; nothing of it is open."""

    examples: list[Example]
    mined: dict[str, int]
    choose: list[measuring.Case]
    report: list[measuring.Case]
    queries: int
    tokenizer: Tokenizer


def train_reranker(
    data: Sequence[Path],
    out: Path,
    settings: Settings,
    *,
    base: str = "embedded",
    teacher: str | None = None,
    plan: Plan,
    negatives: int = 7,
    max_queries: int | None = None,
    say: Say,
) -> dict[str, Any]:
    """Trains, measures and exports; returns what ``rag train-reranker --json`` prints.

    Cut off at any moment, it goes on where it was when it is called again with the same arguments; once finished, it
    returns its outcome again.

    Raises:
        SettingsError: an argument, the data or the folder is wrong.
        MissingExtraError: the packages of the extra ``train`` are not installed.
        RerankerError, StoreError, EmbedderError: that part failed.
    """
    require_extra()
    if len({path.resolve() for path in data}) < len(data):
        raise SettingsError("--data names the same folder or file twice")
    arguments = {
        "data": [{"path": str(path.resolve()), "sha256": data_hash(path)} for path in data],
        "base": base,
        "teacher": teacher,
        **{name: value for name, value in asdict(plan).items() if name != "device"},
        "negatives": negatives,
        "max_queries": max_queries,
        **{name: getattr(settings, name) for name in _SETTINGS},
    }
    with training_folder(out, arguments) as folder, ExitStack() as parts:
        if folder.outcome is not None:
            say(f"{out} is finished: this is its outcome")
            return folder.outcome
        taught_by = None if teacher is None else open_teacher(teacher, settings)
        close = getattr(taught_by, "close", None)
        if close is not None:
            parts.callback(close)
        start = open_base(base, settings, folder.work)
        cache = parts.enter_context(closing(ScoreCache(folder.work / "scores.sqlite", _CACHED_SCORES)))
        ready = _prepare(data, settings, start, taught_by, cache, folder.work, plan.seed, negatives, max_queries, say)
        losses = _fitted(start, ready, folder.work, plan, say)
        outcome = _exported(folder, start, ready, cache, settings, say)
        outcome["loss"] = {"steps": losses[-1]["step"], "first": losses[0]["loss"], "last": losses[-1]["loss"]}
        outcome["teacher"] = (
            None if taught_by is None else f"{taught_by.name} {getattr(taught_by, 'model', '')}".strip()
        )
        write_card(out, arguments, outcome, start.card)
        folder.finish(outcome)
        return outcome


def _prepare(
    data: Sequence[Path],
    settings: Settings,
    base: Base,
    teacher: Reranker | None,
    cache: ScoreCache,
    work: Path,
    seed: int,
    negatives: int,
    max_queries: int | None,
    say: Say,
) -> Prepared:
    with Sources(settings, say) as opened:
        sources = [opened.open(path) for path in data]
        parts = split(sources, seed=seed, max_queries=max_queries)
        choose = [
            case for source, part in zip(sources, parts, strict=True) for case in measuring.cases(source, part.choose)
        ]
        report = [
            case for source, part in zip(sources, parts, strict=True) for case in measuring.cases(source, part.report)
        ]
        measuring.check([*choose, *report])
        queries = sum(len(part.train) for part in parts)
        say(f"{queries} queries to train on, {len(choose)} to choose by, {len(report)} to report on")
        kept, counts = work / "examples.jsonl", work / "examples.json"
        if not counts.is_file():
            judge = _judge(base, teacher, choose, opened.tokenizer, cache, say)
            examples: list[Example] = []
            mined: Counter[str] = Counter()
            for source, part in zip(sources, parts, strict=True):
                miner = Miner(source, judge, negatives=negatives, seed=seed)
                for done, id_ in enumerate(part.train):
                    examples += miner.examples(id_)
                    if done % 100 == 99:
                        say(f"{source.name}: negatives for {done + 1} of {len(part.train)} queries")
                mined += miner.counts
            if not examples:
                raise SettingsError("no query has a relevant passage to train on: is the corpus complete?")
            write_examples(kept, examples)
            counts.write_text(json.dumps(mined), encoding="utf-8")
        found = json.loads(counts.read_text(encoding="utf-8"))
        return Prepared(read_examples(kept), Counter(found), choose, report, queries, opened.tokenizer)


def _judge(
    base: Base,
    teacher: Reranker | None,
    choose: Sequence[measuring.Case],
    tokenizer: Tokenizer,
    cache: ScoreCache,
    say: Say,
) -> Judge | None:
    """The teacher, or else the base with the weight that suits it best; None where the base is no reranker yet."""
    if teacher is not None:
        return Judge(Scorer(teacher, tokenizer=tokenizer, cache=cache), teacher.default_alpha, teaches=True)
    if base.reranker is None:
        return None
    scorer = Scorer(base.reranker, tokenizer=tokenizer, cache=cache)
    alpha = measuring.best_alpha(choose, measuring.scored(scorer, choose, say, "before"))
    return Judge(scorer, alpha, teaches=False)


def _fitted(base: Base, ready: Prepared, work: Path, plan: Plan, say: Say) -> list[dict[str, float]]:
    """The course of the loss; the model is in ``work/huggingface``."""
    course = work / "losses.json"
    if not course.is_file():
        losses = fit(base.model, ready.examples, work / "checkpoints", work / _HUGGING_FACE, plan, say)
        course.write_text(json.dumps(losses), encoding="utf-8")
    found: list[dict[str, float]] = json.loads(course.read_text(encoding="utf-8"))
    return found


def _exported(
    folder: TrainingFolder, base: Base, ready: Prepared, cache: ScoreCache, settings: Settings, say: Say
) -> dict[str, Any]:
    """Measures before and after, chooses alpha, and moves the model to where it is used from."""
    torch_model = folder.work / _HUGGING_FACE
    new: Reranker = CrossEncoderReranker(str(torch_model), device=settings.device)
    engine = None
    engine_folder = folder.work / "engine"
    try:
        with quiet():
            to_engine(torch_model, engine_folder, folder.path.resolve().name)
        quick = EmbeddedReranker(engine_folder)
        exact, rounded = (Scorer(one, tokenizer=ready.tokenizer) for one in (new, quick))
        engine = agreement(exact, rounded, ready.report, say)
        if agrees(engine):
            new = quick
        else:
            say("the int8 model differs too much from the trained one: use it by RAG_RERANKER=cross-encoder")
            engine = None
    except Exception as error:  # noqa: BLE001 - a converter raises whatever a model that it does not know makes it
        say(f"no model for the CPU engine, use it by RAG_RERANKER=cross-encoder: {error}")
    outcome = _measured(base, new, ready, cache, say)
    files = {f"{_HUGGING_FACE}/{path.name}": path for path in sorted(torch_model.glob("*.safetensors"))}
    if engine is not None:
        _set_alpha(engine_folder / "config.json", outcome["alpha"]["after"])
        files = {name: engine_folder / name for name in FILES} | files
    outcome |= {
        "out": str(folder.path.resolve()),
        "base": base.name,
        "queries": {"train": ready.queries, "choose": len(ready.choose), "report": len(ready.report)},
        "top_n": settings.top_n,
        "mined": ready.mined,
        "engine": engine,
        "env": _env(folder.path.resolve(), engine is not None, outcome["alpha"]["after"]),
        "sha256": {name: _sha256(path) for name, path in files.items()},
    }
    for name in FILES if engine is not None else ():
        shutil.copyfile(engine_folder / name, folder.path / name)
    shutil.copytree(torch_model, folder.path / _HUGGING_FACE, dirs_exist_ok=True)
    return outcome


def _measured(base: Base, new: Reranker, ready: Prepared, cache: ScoreCache, say: Say) -> dict[str, Any]:
    """nDCG@10 of first stage, before and after on the queries to report on, each with the weight that suits it best
    on those to choose by."""
    both = [*ready.choose, *ready.report]
    first = measuring.ndcg(ready.report, None)
    ndcg: dict[str, float | None] = {"first_stage": _mean(first)}
    alphas: dict[str, float | None] = {}
    values = {}
    for name, reranker in (("before", base.reranker), ("after", new)):
        ndcg[name] = ndcg[f"{name}_alone"] = alphas[name] = None
        if reranker is None:
            continue
        scores = measuring.scored(Scorer(reranker, tokenizer=ready.tokenizer, cache=cache), both, say, name)
        choose, report = scores[: len(ready.choose)], scores[len(ready.choose) :]
        alpha = alphas[name] = measuring.best_alpha(ready.choose, choose)
        values[name] = measuring.ndcg(ready.report, report, alpha)
        ndcg[name] = _mean(values[name])
        ndcg[f"{name}_alone"] = _mean(measuring.ndcg(ready.report, report))
    against = {"the model that it started from": values.get("before"), "the first stage alone": first}
    tests = {than: measuring.difference(old, values["after"]) for than, old in against.items() if old is not None}
    by_data: dict[str, list[int]] = {}
    for place, case in enumerate(ready.report):
        by_data.setdefault(case.source, []).append(place)
    return {
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
    """The lines for ``.env``; only the engine's folder carries its weight against the first stage."""
    if engine:
        return {variable("reranker"): "embedded", variable("reranker_model"): str(out)}
    return {
        variable("reranker"): "cross-encoder",
        variable("reranker_model"): str(out / _HUGGING_FACE),
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
