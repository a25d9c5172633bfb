"""``rag``: arguments in, printed results out. Results go to stdout, everything else to stderr.

Exit codes: 0 done; 1 something failed; 2 wrong arguments or settings; 130 interrupted.

The imports that cost time are inside the commands, so that ``rag --help`` answers at once.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline import maintenance
from pipeline.console import Json, print_json, stderr, stdout
from pipeline.evaluation import command as evaluation
from pipeline.training import command as training
from pipeline.watching import command as watching

if TYPE_CHECKING:
    from pipeline.core import Pipeline
    from pipeline.ingestion.run import Progress
    from pipeline.settings import Settings

app = typer.Typer(
    name="rag",
    help="Two-stage retrieval: hybrid recall in Qdrant, then a reranker. Settings: RAG_... variables and .env.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_INTERRUPTED = 130


def main() -> None:
    """Entry point of the console script: one line on stderr for every error that is ours."""
    from pipeline.errors import RagError, SettingsError

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file name may hold what no encoding has; written out as \udce9 it is valid JSON, too.
            stream.reconfigure(errors="backslashreplace")
    # What takes long the first time (downloads, conversions) is said, and what goes another way than asked for.
    logging.basicConfig(format="rag: %(message)s", level=logging.WARNING)
    logging.getLogger("pipeline").setLevel(logging.INFO)
    try:
        app(prog_name="rag")
    except SettingsError as error:
        _fail(error, 2)
    except RagError as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        _say_stopped()
        sys.exit(_INTERRUPTED)
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:  # typer ends so, without a word, where it is interrupted
            _say_stopped()
        raise
    except BrokenPipeError:
        # The reader (head, less) went away; Python would complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _say_stopped() -> None:
    print("rag: stopped; what was written stays, run it again to go on", file=sys.stderr)


def _fail(error: Exception, code: int) -> None:
    if _debug:
        raise error
    print(f"rag: error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(code)


_debug = False


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("two-stage-rag"))
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    global _debug
    _debug = debug


@app.command()
def ingest(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH", help="Files and folders; .jsonl holds a document a line.")
    ],
    prune: Annotated[
        bool, typer.Option("--prune", help="Also remove documents whose source under PATH is gone.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    max_delete: Annotated[
        float,
        typer.Option(
            metavar="SHARE", min=0.0, max=1.0, help="Largest share of the documents there that --prune removes."
        ),
    ] = 0.2,
    profile: Annotated[bool, typer.Option("--profile", help="Say how the time was spent.")] = False,
    as_json: Json = False,
) -> None:
    """Read files and folders, and bring the collection up to date with them."""
    from pipeline.display import print_profile, print_report

    with _opened() as (rag, progress):
        report = rag.ingest(paths, prune=prune, dry_run=dry_run, max_delete=max_delete, progress=progress)
    if as_json:
        shown = {"profile": report.profile.to_dict()} if profile and report.profile else {}
        print_json(report.to_dict(exact=True) | shown)
    else:
        print_report(stdout(), report)
        if profile and report.profile:
            print_profile(stdout(), report.profile)
    if report.failures:
        sys.exit(1)


@app.command()
def query(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The question.")],
    top_n: Annotated[int | None, typer.Option(metavar="N", help="Candidates of the first stage.")] = None,
    top_k: Annotated[int | None, typer.Option(metavar="K", help="Hits to print.")] = None,
    reranker: Annotated[str | None, typer.Option(metavar="NAME", help="Instead of RAG_RERANKER.")] = None,
    threshold: Annotated[
        float | None, typer.Option(metavar="P", help="Drop hits with a lower rerank probability.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(metavar="A", help="Weight of the rerank score, 0 to 1.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Filter on metadata; again for any of several; also >, >=, <, <=."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find the passages that answer a question."""
    from pipeline.core import Pipeline
    from pipeline.display import print_result

    conditions = parse_where(where or [])
    settings = _settings()
    # What they say of a query that went another way is in its result.
    for part in ("pipeline.reranking", "pipeline.cascade"):
        logging.getLogger(part).setLevel(logging.ERROR)
    with Pipeline.from_settings(settings if reranker is None else settings.with_reranker(reranker)) as rag:
        result = rag.query(text, top_n=top_n, top_k=top_k, threshold=threshold, alpha=alpha, where=conditions)
        # Before the pipeline is closed: with a deadline that waits for a reranker that is still loading.
        if as_json:
            print_json(result.to_dict(exact=True))
        else:
            print_result(stdout(), result)
        sys.stdout.flush()


app.add_typer(evaluation.app, name="eval")
app.command()(evaluation.tune)
app.command()(evaluation.calibrate)
app.command("train-reranker")(training.train_reranker)
app.command()(watching.watch)
for _command in (maintenance.reindex, maintenance.rollback, maintenance.gc):
    app.command()(_command)


@app.command()
def status(as_json: Json = False) -> None:
    """Say what is stored, and with which settings."""
    from pipeline.build import build_store, calibration_dir
    from pipeline.calibration import all_calibrations
    from pipeline.display import print_pairs
    from pipeline.ingestion.reindexing import generations_of

    settings = _settings()
    calibrations = all_calibrations(calibration_dir(settings))
    store = build_store(settings)
    try:
        made_with = store.fingerprint()
        count = store.count()
        generations = generations_of(store).all()
        outcome: dict[str, Any] = {
            "collection": settings.collection,
            "store": store.name,
            "exists": made_with is not None,
            "documents": count.documents,
            "chunks": count.chunks,
            "generations": [one.to_dict() for one in generations],
            "fingerprint": None if made_with is None else made_with.to_dict(),
            "embedder": settings.embedder,
            "reranker": settings.reranker,
            "search": settings.search,
            "calibrations": [calibration.to_dict() for calibration in calibrations],
        }
    finally:
        store.close()
    if as_json:
        print_json(outcome)
        return
    rows = [
        ("collection", outcome["collection"]),
        ("store", outcome["store"]),
        ("documents", str(outcome["documents"])),
        ("chunks", str(outcome["chunks"])),
        ("search", outcome["search"]),
        ("reranker", outcome["reranker"]),
    ]
    rows += [("calibrated", f"{one.reranker} ({one.method}, on {one.dataset})") for one in calibrations]
    if len(generations) > 1:
        rows += [("generation", maintenance.described(one)) for one in generations]
    if made_with is None:
        rows.append(("state", "nothing ingested yet: rag ingest PATH"))
    else:
        rows += [(name, str(value)) for name, value in made_with.to_dict().items()]
    print_pairs(stdout(), rows)


@app.command()
def verify(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="PATH", help="Files and folders to compare with, too.")
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what a cut-off ingest left, while nothing else writes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check that the collection holds what its ledger says, and what PATH holds. Exit code 0: it does."""
    from pipeline.display import print_verification

    with _opened() as (rag, progress):
        report = rag.verify(paths or [], repair=repair, progress=progress)
    if as_json:
        print_json(report.to_dict(exact=True))
    else:
        print_verification(stdout(), report, rag.store.name)
    if not report.clean:
        sys.exit(1)


@app.command("export")
def export_collection(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines; gzipped if the name ends in .gz.")],
    vectors: Annotated[
        bool, typer.Option("--vectors", help="With the vectors, so that an import need not make them.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the collection into a file."""
    from pipeline.display import print_transfer

    with _opened() as (rag, progress):
        report = rag.export_to(file, vectors=vectors, progress=progress)
    if as_json:
        print_json(report.to_dict(exact=True))
    else:
        print_transfer(stdout(), f"{report.documents} documents, {report.chunks} chunks written to {file}", report)


@app.command("import")
def import_collection(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What rag export wrote.")], as_json: Json = False
) -> None:
    """Bring the documents of an exported file into the collection."""
    from pipeline.display import print_transfer

    with _opened() as (rag, progress):
        report = rag.import_from(file, progress=progress)
    if as_json:
        print_json(report.to_dict(exact=True))
    else:
        done = f"{report.written} documents written, {report.unchanged} unchanged; {report.chunks_written} chunks"
        print_transfer(stdout(), done + (" embedded" if report.embedded else " with their vectors"), report)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check that everything the settings ask for is in reach."""
    from pipeline.doctor import examine

    checks = examine(_settings())
    if as_json:
        print_json({"ok": all(check.ok for check in checks), "checks": [check.to_dict() for check in checks]})
    else:
        console = stdout()
        for check in checks:
            mark = "[green]ok  [/]" if check.ok else "[red]FAIL[/]"
            console.print(f"{mark} [bold]{check.name}[/]  ", end="")
            console.print(check.detail, markup=False, highlight=False, soft_wrap=True)
    if not all(check.ok for check in checks):
        sys.exit(1)


def parse_where(conditions: list[str]) -> dict[str, Any]:
    """``["lang=en", "year>=2020"]`` -> ``{"lang": "en", "year": {"gte": 2020}}``.

    A value that is JSON (2020, 1.5, true, "2020" in quotes) is taken as such, anything else as text. The same key
    with ``=`` more than once means any of the values.

    Raises:
        SettingsError: a condition is not of this form.
    """
    import re

    from pipeline.errors import SettingsError

    operators = {">=": "gte", "<=": "lte", ">": "gt", "<": "lt"}
    where: dict[str, Any] = {}
    for condition in conditions:
        match = re.fullmatch(r"\s*([^=<>!]+?)\s*(>=|<=|==?|>|<)\s*(.*)", condition, re.DOTALL)
        if match is None:
            raise SettingsError(f"--where {condition!r}: expected KEY=VALUE, or KEY with >=, <=, > or < and a value")
        key, operator, text = match.groups()
        value = _json_or_text(text)
        ranged = isinstance(where.get(key), dict)
        if key in where and ranged != (operator in operators):
            raise SettingsError(f"--where: {key} has both = and a range")
        if operator in operators:
            where.setdefault(key, {})[operators[operator]] = value
        elif key in where:
            where[key] = [*(where[key] if isinstance(where[key], list) else [where[key]]), value]
        else:
            where[key] = value
    return where


def _json_or_text(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str | int | float | bool) else text


def _settings() -> Settings:
    from pipeline.settings import Settings

    return Settings()


@contextmanager
def _opened() -> Iterator[tuple[Pipeline, Callable[[Progress], None]]]:
    """The pipeline of a command that changes or checks the collection, and what shows its progress.

    It needs no reranker, so a missing key must not stop it.
    """
    from pipeline.core import Pipeline
    from pipeline.display import ingest_progress

    with Pipeline.from_settings(_settings(), rerank=False) as rag, ingest_progress(stderr()) as progress:
        yield rag, progress
