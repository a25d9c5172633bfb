"""``rag train-reranker``: arguments in, printed results out. The imports that cost time are inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.console import Json, print_json, sayer, stderr, stdout
from pipeline.evaluation.statistics import p_value

if TYPE_CHECKING:
    from rich.console import Console


def train_reranker(
    data: Annotated[
        list[Path],
        typer.Option(
            metavar="FOLDER",
            help="A folder in BEIR's layout, a questions.jsonl about the ingested collection, or feedback "
            '({"query", "chosen", "shown"} a line; ids or texts); again for several.',
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the model goes; run again, it goes on there.")],
    base: Annotated[
        str, typer.Option(metavar="MODEL", help="What to start from: embedded, a folder, or a Hugging Face name.")
    ] = "embedded",
    teacher: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Also learn from a bigger one: a folder, owner/model, or as RAG_RERANKER."),
    ] = None,
    epochs: Annotated[float, typer.Option(metavar="N", min=0.01, help="Times through the data.")] = 2.0,
    learning_rate: Annotated[
        float, typer.Option(metavar="RATE", min=1e-8, max=0.1, help="At its highest, after the warm-up.")
    ] = 3e-5,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Lists in a step.")] = 16,
    negatives: Annotated[int, typer.Option(metavar="N", min=1, max=100, help="In a list, beside the relevant.")] = 7,
    max_queries: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="A random sample of so many of each data.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Equal seeds split, draw and train alike.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a reranker on labelled queries.

    At the end it says whether the new one is better.
    """
    from pipeline.settings import Settings
    from pipeline.training.fitting import Plan
    from pipeline.training.run import train_reranker as run

    settings = Settings()
    outcome = run(
        data,
        out,
        settings,
        base=base,
        teacher=teacher,
        plan=Plan(epochs, learning_rate, batch_size, seed, settings.device),
        negatives=negatives,
        max_queries=max_queries,
        say=sayer(stderr()),
    )
    if as_json:
        print_json(outcome)
    else:
        print_outcome(stdout(), outcome)


def print_outcome(console: Console, outcome: Mapping[str, Any]) -> None:
    """What it is worth, and the lines for ``.env``."""
    from rich.table import Table

    from pipeline.training.card import plainly

    ndcg, alpha = outcome["ndcg@10"], outcome["alpha"]
    console.print(f"nDCG@10 on {outcome['queries']['report']} queries that were kept back", style="bold")
    table = Table("", "alpha", "with the first stage", "alone", box=None)
    table.add_row("first stage", "", f"{ndcg['first_stage']:.4f}", "")
    for name in ("before", "after"):
        if ndcg[name] is not None:
            table.add_row(name, f"{alpha[name]:g}", f"{ndcg[name]:.4f}", f"{ndcg[name + '_alone']:.4f}")
    console.print(table)
    console.print(
        f"alpha {alpha['after']:g} was chosen on {outcome['queries']['choose']} other queries; of equally good ones "
        "it is the nearest to that of the model before",
        style="dim",
        highlight=False,
    )
    for line, test in zip(plainly(outcome), outcome["against"].values(), strict=True):
        style = {"better": "green", "worse": "red"}.get(test["verdict"], "yellow")
        console.print(f"{line} ({test['difference']:+.4f}, {p_value(test['p'])})", style=style, highlight=False)
    console.print()
    for name, value in outcome["env"].items():
        console.print(f"{name}={value}", highlight=False, markup=False, soft_wrap=True)
