"""The model card: what the model was made of, and what it is worth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.evaluation.statistics import p_value

_VERDICTS = {
    "better": "It is better than {than}.",
    "worse": "**It is worse than {than}: do not use it.**",
    "no difference": "**It is not shown to be better than {than}**: the difference may be chance.",
}


def plainly(outcome: Mapping[str, Any]) -> list[str]:
    """One sentence for each thing that it was compared with."""
    return [_VERDICTS[test["verdict"]].format(than=than).replace("**", "") for than, test in outcome["against"].items()]


def licence_of(folder: Path) -> str:
    """What a folder says of its licence: the first line with the word in its README or licence file."""
    for pattern in ("LICEN[CS]E*", "README*"):
        for file in sorted(file for file in folder.glob(pattern) if file.is_file()):
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            for line in lines if pattern.startswith("README") else lines[:1]:
                if line.strip() and (pattern.startswith("LICEN") or "licen" in line.lower()):
                    return f'{file.name}: "{line.strip()[:200]}"'
    return "not stated in its folder: find out before you pass the model on"


def write_card(folder: Path, arguments: Mapping[str, Any], outcome: Mapping[str, Any], base_card: Path | None) -> None:
    """Writes ``README.md``."""
    (folder / "README.md").write_text("\n".join(_lines(folder, arguments, outcome, base_card)) + "\n", "utf-8")


def _lines(
    folder: Path, arguments: Mapping[str, Any], outcome: Mapping[str, Any], base_card: Path | None
) -> Iterable[str]:
    queries, ndcg, alpha = outcome["queries"], outcome["ndcg@10"], outcome["alpha"]
    yield f"# {folder.name}"
    yield ""
    yield f"A reranker: {outcome['base']}, trained further by `rag train-reranker`. To use it:"
    yield ""
    yield "```sh"
    yield from (f"{name}={value}" for name, value in outcome["env"].items())
    yield "```"
    yield ""
    yield "`huggingface/` has the same model for sentence-transformers and `RAG_RERANKER=cross-encoder`."
    yield ""
    yield "## What it is worth"
    yield ""
    yield " ".join(
        _VERDICTS[test["verdict"]].format(than=than)
        + f" ({test['difference']:+.4f} nDCG@10, 95 % interval {test['low']:+.4f} to {test['high']:+.4f}, "
        f"{p_value(test['p'])})"
        for than, test in outcome["against"].items()
    )
    yield ""
    yield f"nDCG@10 on {queries['report']} queries that were kept back, over the first {outcome['top_n']} candidates."
    yield f"The weight against the first stage (alpha) was chosen on {queries['choose']} other ones, of equally good"
    yield "weights the nearest to that of the model before, which stands with its own."
    yield "`work/split.json` has the ids of both."
    if outcome["cascade"]:
        yield "As in a query, `embedded` is the first step (`RAG_CASCADE`), and the model reads the best third;"
        yield "alone, it reads all."
    yield ""
    yield "| | alpha | with the first stage | alone |"
    yield "|---|---|---|---|"
    yield f"| first stage | | {ndcg['first_stage']:.4f} | |"
    for name in ("before", "after"):
        if ndcg[name] is not None:
            yield f"| {name} | {alpha[name]:g} | {ndcg[name]:.4f} | {ndcg[name + '_alone']:.4f} |"
    yield ""
    if len(outcome["by_data"]) > 1:
        yield "By data: " + "; ".join(
            f"{name} ({one['queries']} queries) {one['first_stage']:.4f} by the first stage, {one['after']:.4f} after"
            for name, one in outcome["by_data"].items()
        )
        yield ""
    yield "Figures on queries of the same kind as those it was trained on; other text may fare worse."
    yield "`rag eval` measures it on any labelled set, `rag calibrate` gives its probabilities a meaning."
    yield ""
    yield "## Data"
    yield ""
    for one in arguments["data"]:
        path = Path(one["path"])
        where = path if path.is_dir() else path.parent
        yield f"- `{path.name}`, sha256 `{one['sha256']}`; licence {licence_of(where)}"
    base = licence_of(base_card.parent) if base_card is not None and base_card.is_file() else "see its own card"
    yield f"- base model {outcome['base']}; licence {base}"
    if outcome["teacher"] is not None:
        yield f"- teacher {outcome['teacher']}: its terms may forbid to train models on its answers"
    yield ""
    yield f"{queries['train']} queries made {outcome['mined']['lists']} lists with {outcome['mined']['hard negatives']}"
    yield f"hard and {outcome['mined']['random negatives']} random negatives; {outcome['mined']['likely relevant']}"
    yield "candidates were left out as likely relevant, judged or not."
    yield ""
    yield "## Settings"
    yield ""
    listed = {name: value for name, value in arguments.items() if name not in {"data", "base", "teacher"}}
    yield ", ".join(f"{name} {value}" for name, value in listed.items()) + "; word embeddings frozen, ListNet loss."
    loss = outcome["loss"]
    yield f"{loss['steps']} steps, loss {loss['first']:.4f} at first and {loss['last']:.4f} at last."
    yield ""
    yield "## Files"
    yield ""
    yield from (f"- `{name}`: sha256 `{value}`" for name, value in outcome["sha256"].items())
    if outcome["engine"] is not None:
        engine = outcome["engine"]
        yield (
            f"- int8 against float32 on {engine['pairs']} pairs: correlation {engine['correlation']:.4f}, logits apart "
            f"by {engine['mean']:.4f} in the mean"
        )
