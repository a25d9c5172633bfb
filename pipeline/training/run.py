"""``rag train-reranker`` from data to model folder, in steps that a second run does not repeat."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pipeline.errors import SettingsError
from pipeline.evaluation.collection import Say
from pipeline.interfaces import Reranker
from pipeline.reranking import Scorer
from pipeline.score_cache import ScoreCache
from pipeline.settings import Settings
from pipeline.training import measuring
from pipeline.training.card import write_card
from pipeline.training.finishing import Prepared, finish
from pipeline.training.fitting import Plan, fit, require_extra
from pipeline.training.folder import HUGGING_FACE, SPLIT, data_hash, training_folder, write_json
from pipeline.training.mining import COUNTED, Example, Judge, Miner, read_examples, write_examples
from pipeline.training.sources import Sources
from pipeline.training.splitting import read_split, split
from pipeline.training.starting import Base, open_base, open_teacher

_CACHED_SCORES = 100_000_000
_FEW = 50
# What examples and figures depend on beside the arguments.
_SETTINGS = (
    "embedder",
    "embedding_model",
    "search",
    "hybrid_fusion",
    "top_n",
    "top_k",
    "fusion",
    "cascade",
    "chunk_tokens",
    "chunk_overlap",
)


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
        ready = _prepare(data, settings, start, taught_by, cache, folder.work, arguments, say)
        losses = _fitted(start, ready, folder.work, plan, say)
        outcome = finish(folder, start, ready, cache, settings, say)
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
    arguments: Mapping[str, Any],
    say: Say,
) -> Prepared:
    """Everything that is read of data and collections, which are closed again afterwards."""
    seed, max_queries = arguments["seed"], arguments["max_queries"]
    with Sources(settings, say) as opened:
        sources = [opened.open(path) for path in data]
        kept, sides, counts = work / "examples.jsonl", work / SPLIT, work / "examples.json"
        mined_before = counts.is_file()  # it is written last
        # Clicked passages may have left the collection since. If what is left were split anew, queries would change
        # sides, and some of those in the examples would be reported on.
        parts = read_split(sides) if mined_before else split(sources, seed=seed, max_queries=max_queries)
        choose, report = (
            [
                case
                for place, (source, part) in enumerate(zip(sources, parts, strict=True))
                for case in measuring.cases(source, [i for i in getattr(part, name) if i in source.queries], place)
            ]
            for name in ("choose", "report")
        )
        if not choose or not report:
            raise SettingsError(
                "nothing that was chosen in the queries kept back is in the collection any more: start again with a "
                "new folder for --out"
            )
        measuring.check([*choose, *report])
        queries = sum(len(part.train) for part in parts)
        say(f"{queries} queries to train on, {len(choose)} to choose by, {len(report)} to report on")
        if measuring.distinct(report) < _FEW:
            say("these are few: look at the intervals before you believe a difference")
        if not mined_before:
            judge = _judge(base, teacher, choose, opened.tokenizer, cache, say)
            miners = [Miner(source, judge, negatives=arguments["negatives"], seed=seed) for source in sources]
            trained_on = [part.train for part in parts]
            write_examples(kept, _mined(miners, trained_on, say))
            write_json(sides, [asdict(part) for part in parts])
            write_json(counts, {name: sum(miner.counts[name] for miner in miners) for name in COUNTED})
        mined = json.loads(counts.read_text(encoding="utf-8"))
        return Prepared(read_examples(kept), mined, choose, report, queries, opened.tokenizer)


def _mined(miners: Sequence[Miner], queries: Sequence[Sequence[str]], say: Say) -> list[Example]:
    examples: list[Example] = []
    for miner, ids in zip(miners, queries, strict=True):
        for done, id_ in enumerate(ids, 1):
            examples += miner.examples(id_)
            if done % 100 == 0:
                say(f"{miner.source.name}: negatives for {done} of {len(ids)} queries")
    if not examples:
        raise SettingsError("no query has a relevant passage to train on: is the corpus complete?")
    return examples


def _judge(
    base: Base,
    teacher: Reranker | None,
    choose: Sequence[measuring.Case],
    tokenizer: Tokenizer,
    cache: ScoreCache,
    say: Say,
) -> Judge | None:
    """The teacher, or else the base with the weight that suits it best when scores are added, as the miner does; None
    where the base is no reranker yet."""
    if teacher is not None:
        return Judge(Scorer(teacher, tokenizer=tokenizer, cache=cache), teacher.default_alpha, teaches=True)
    if base.reranker is None:
        return None
    scorer = Scorer(base.reranker, tokenizer=tokenizer, cache=cache)
    alpha = measuring.best_alpha(choose, measuring.scored(scorer, choose, say, "before"), base.reranker.default_alpha)
    return Judge(scorer, alpha, teaches=False)


def _fitted(base: Base, ready: Prepared, work: Path, plan: Plan, say: Say) -> list[dict[str, float]]:
    """The course of the loss; the model is in ``work/huggingface``."""
    course = work / "losses.json"
    if not course.is_file():
        losses = fit(base.model, ready.examples, work / "checkpoints", work / HUGGING_FACE, plan, say)
        write_json(course, losses)
    found: list[dict[str, float]] = json.loads(course.read_text(encoding="utf-8"))
    return found
