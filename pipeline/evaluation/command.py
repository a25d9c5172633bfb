"""``rag eval``, ``rag tune`` and ``rag calibrate``: arguments in, printed results out.

The imports that cost time are inside the commands.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from pipeline.console import Json, print_json, sayer, stderr, stdout
from pipeline.errors import SettingsError
from pipeline.files import as_path

RUN = "run"


class _RunUnlessNamed(TyperGroup):
    """``rag eval DATASET`` runs an evaluation; only a subcommand's own name comes before it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = [RUN, *args]
        return super().parse_args(ctx, args)


class _NameOfGroup(typer.Context):
    @property
    def command_path(self) -> str:
        return self.parent.command_path if self.parent is not None else super().command_path


class _Evaluate(TyperCommand):
    """As it is typed in messages: without its own name."""

    context_class = _NameOfGroup

    def collect_usage_pieces(self, _: Any) -> list[str]:
        return ["[OPTIONS]", "DATASET"]


app = typer.Typer(cls=_RunUnlessNamed, add_completion=False, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Measure retrieval quality and latency on labelled queries."""


@app.command(
    RUN,
    cls=_Evaluate,
    epilog="rag eval compare A B compares two saved runs, query by query. Values that are given more than once are "
    "crossed: two rerankers and two --top-n are four runs.",
)
def evaluate(
    dataset: Annotated[
        str | None,
        typer.Argument(
            metavar="DATASET",
            help="Needed, except with --make-questions: a folder in BEIR's layout (corpus.jsonl, queries.jsonl, "
            'qrels/test.tsv), a questions.jsonl about the ingested collection ({"question", "relevant": [ids, paths or '
            "an answer]}), or irds:NAME.",
        ),
    ] = None,
    reranker: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Again for several; by default none and RAG_RERANKER.")
    ] = None,
    search: Annotated[
        list[str] | None, typer.Option(metavar="MODE", help="hybrid, dense or sparse; again for several.")
    ] = None,
    top_n: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            help="Candidates to rerank; again for several. A run without a reranker always lists 100 or more.",
        ),
    ] = None,
    alpha: Annotated[
        list[float] | None, typer.Option(metavar="A", help="Weight of the rerank score; again for several.")
    ] = None,
    threshold: Annotated[
        list[float] | None, typer.Option(metavar="P", help="Drop hits below it; again for several.")
    ] = None,
    k: Annotated[
        list[int] | None, typer.Option("--k", metavar="K", min=1, help="Metrics at this depth, too; again for several.")
    ] = None,
    max_queries: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only the first queries, for a quick look.")
    ] = None,
    whole_documents: Annotated[
        bool,
        typer.Option(
            "--whole-documents",
            help="Do not cut documents: the embedder reads their beginning, as for published figures.",
        ),
    ] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Also write a page with tables, plots and the queries.")
    ] = None,
    runs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where runs are saved, instead of runs in RAG_DATA_DIR.")
    ] = None,
    make_questions: Annotated[
        Path | None,
        typer.Option(
            parser=as_path,
            metavar="PATH",
            help="Instead: write a questions.jsonl from the titles, headings and FAQs of documents.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="What --make-questions writes.")] = Path("questions.jsonl"),
    as_json: Json = False,
) -> None:
    """Measure retrieval quality and latency on labelled queries."""
    if make_questions is not None:
        from pipeline.build import own_folders
        from pipeline.evaluation.known_items import make_questions as make
        from pipeline.evaluation.terminal import print_questions
        from pipeline.settings import Settings

        made = make([make_questions], out, own_folders(Settings()))
        if as_json:
            print_json(made)
        else:
            print_questions(stdout(), made)
        return
    if dataset is None:
        raise SettingsError("rag eval needs a DATASET, or --make-questions PATH; rag eval --help says more")

    from pipeline.evaluation.metrics import metrics_at
    from pipeline.evaluation.plan import cross
    from pipeline.evaluation.run import evaluate as run
    from pipeline.evaluation.saved import save
    from pipeline.evaluation.summary import outcome
    from pipeline.evaluation.terminal import print_eval
    from pipeline.settings import Settings

    _check_report(report)
    settings = Settings()
    saved_in = runs or settings.data_dir / "runs"
    _check_folder(saved_in)
    specs = cross(
        settings,
        searches=search or (),
        rerankers=reranker or (),
        top_ns=top_n or (),
        alphas=alpha or (),
        thresholds=threshold or (),
    )
    say = sayer(stderr())
    evaluation = run(
        dataset,
        settings,
        specs,
        metrics=metrics_at(k or ()),
        max_queries=max_queries,
        whole_documents=whole_documents,
        say=say,
    )
    found = outcome(evaluation)
    if as_json:
        print_json(found)
    else:
        print_eval(stdout(), found)
    # After the results, which a full disk must not take away.
    with _writing():
        say(f"saved in {save(evaluation, found, saved_in)}")
    if report is not None:
        from pipeline.evaluation.report.page import page

        _write_report(report, page(evaluation, found), say)
    if evaluation.failed:
        sys.exit(1)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A saved run: its .json or .trec file.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one, over the same queries.")],
    as_json: Json = False,
) -> None:
    """Compare two saved runs, query by query."""
    from pipeline.evaluation import saved
    from pipeline.evaluation.terminal import print_comparison

    found = saved.compare(saved.load(a), saved.load(b))
    if as_json:
        print_json(found)
    else:
        print_comparison(stdout(), found)


def tune(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="As for rag eval: a BEIR folder, a questions.jsonl, or irds:NAME.")
    ],
    budget_ms: Annotated[
        float, typer.Option(metavar="MS", min=0.1, help="What a whole query may take, at p95.")
    ] = 500.0,
    metric: Annotated[
        str, typer.Option(metavar="NAME", help="What to make the best of, such as recall@5.")
    ] = "ndcg@10",
    reranker: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Again for several; by default none and RAG_RERANKER.")
    ] = None,
    search: Annotated[
        list[str] | None, typer.Option(metavar="MODE", help="Again for several; by default all three.")
    ] = None,
    top_n: Annotated[
        list[int] | None, typer.Option(metavar="N", help="Again for several; by default 10, 20, 50 and 100.")
    ] = None,
    alpha: Annotated[
        list[float] | None, typer.Option(metavar="A", help="Again for several; by default five from 0.1 to 1.")
    ] = None,
    chunk_tokens: Annotated[
        list[int] | None,
        typer.Option(metavar="TOKENS", help="Also try chunks of this size; again for several. Ingests once for each."),
    ] = None,
    max_queries: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only the first queries, for a quick look.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find the best settings within a time budget.

    They are printed as lines for .env.
    """
    from pipeline.evaluation.terminal import print_tuned
    from pipeline.evaluation.tune import tune as run
    from pipeline.settings import Settings

    found = run(
        dataset,
        Settings(),
        budget_ms=budget_ms,
        metric=metric,
        searches=search or (),
        rerankers=reranker or (),
        top_ns=top_n or (),
        alphas=alpha or (),
        chunk_tokens=chunk_tokens or (),
        max_queries=max_queries,
        say=sayer(stderr()),
    )
    if as_json:
        print_json(found)
    else:
        print_tuned(stdout(), found)


def calibrate(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="Labelled queries, as for rag eval: a folder, or questions.jsonl.")
    ],
    reranker: Annotated[str | None, typer.Option(metavar="NAME", help="Instead of RAG_RERANKER.")] = None,
    method: Annotated[
        str, typer.Option(metavar="METHOD", help="platt (a logistic curve) or isotonic (any rising line).")
    ] = "platt",
    precision: Annotated[
        float,
        typer.Option(metavar="P", min=0.0, max=1.0, help="Say from which threshold on this share is relevant."),
    ] = 0.9,
    max_queries: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first queries.")] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write a page: reliability, precision and recall.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a reranker's probabilities mean what they say.

    A threshold then survives a switch of the reranker.
    """
    from pipeline.evaluation.calibration import calibrate_dataset
    from pipeline.evaluation.terminal import print_calibration
    from pipeline.settings import Settings

    _check_report(report)
    say = sayer(stderr())
    settings = Settings()
    outcome = calibrate_dataset(
        dataset,
        settings if reranker is None else settings.with_reranker(reranker),
        method=_one_of(method, "--method", ("platt", "isotonic")),
        precision=precision,
        max_queries=max_queries,
        say=say,
    )
    if as_json:
        print_json(outcome.to_dict())
    else:
        print_calibration(stdout(), outcome.to_dict())
    if report is not None:
        from pipeline.evaluation.report.calibration import calibration_page

        _write_report(report, calibration_page(outcome), say)


def _check_report(report: Path | None) -> None:
    """Before the work, which takes minutes."""
    if report is not None and not report.absolute().parent.is_dir():
        raise SettingsError(f"--report {report}: there is no folder {report.parent}")


def _check_folder(folder: Path) -> None:
    """Whether a folder can be made there, or written into; before the work, too."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise SettingsError(f"runs cannot be saved in {folder}: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SettingsError(f"runs cannot be saved in {folder}: {there} cannot be written to")


def _write_report(report: Path, page: str, say: Callable[[str], None]) -> None:
    with _writing():
        report.write_text(page, encoding="utf-8", errors="replace")
    say(f"report: {report}")


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingsError(f"cannot write {error.filename}: {error.strerror}") from error


def _one_of(value: str, option: str, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise SettingsError(f"{option} {value!r}: there are {', '.join(allowed)}")
    return value
