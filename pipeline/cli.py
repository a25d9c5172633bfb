"""``rag``: arguments in, printed results out. Results go to stdout, everything else to stderr.

Exit codes: 0 done; 1 something failed; 2 wrong arguments or settings; 130 interrupted.

The imports that cost time are inside the commands, so that ``rag --help`` answers at once.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from pipeline import maintenance
from pipeline.console import Json, make_streams_lenient, print_failure, print_json, stderr, stdout
from pipeline.errors import RagError, SettingsError
from pipeline.evaluation import command as evaluation
from pipeline.files import as_path
from pipeline.training import command as training
from pipeline.watching import command as watching

if TYPE_CHECKING:
    from pipeline.core import Pipeline
    from pipeline.ingestion.run import Progress
    from pipeline.settings import Settings
    from pipeline.where import Where

COMMANDS = (
    *("ingest", "query", "watch", "status", "verify", "doctor"),
    *("export", "import", "reindex", "rollback", "gc"),
    *("eval", "tune", "calibrate", "train-reranker"),
)
"""In the order of the help."""


class _InOrder(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=COMMANDS.index)


app = typer.Typer(
    name="rag",
    cls=_InOrder,
    help="Two-stage retrieval: hybrid recall in Qdrant, then a reranker. Settings: RAG_... variables and .env.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_INTERRUPTED = 130
# Run again, these go on where they were.
_GOING_ON = frozenset({"ingest", "watch", "import", "reindex", "gc", "eval", "tune", "calibrate", "train-reranker"})


def main() -> None:
    """One line on stderr for every error that is ours, and the exit code."""
    code = _run()
    failure = print_failure()
    # A reader that went away (head, less) has had enough.
    if failure is not None and not isinstance(failure, BrokenPipeError):
        why = "it is closed" if failure.errno == errno.EBADF else failure.strerror
        print(f"rag: error: not all of the output could be written to stdout: {why}", file=sys.stderr)
        code = code or 1
    sys.exit(code)


def _run() -> int:
    try:
        make_streams_lenient()
        # What takes long the first time (downloads, conversions) is said, and what goes another way than asked for.
        logging.basicConfig(format="rag: %(message)s", level=logging.WARNING)
        logging.getLogger("pipeline").setLevel(logging.INFO)
        app(prog_name="rag")
    except SettingsError as error:
        return _failed(error, 2)
    except RagError as error:
        return _failed(error, 1)
    except KeyboardInterrupt:
        return _stopped()
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:  # typer ends so, without a word, where it is interrupted
            return _stopped()
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def _stopped() -> int:
    if not _running and sys.argv[1:2] == ["watch"]:  # it goes on until then, and has not begun
        print("rag: stopped", file=sys.stderr)
        return 0
    written = (_running in _GOING_ON and "--dry-run" not in sys.argv) or "--repair" in sys.argv
    print(f"rag: stopped{'; what was written stays, run it again to go on' if written else ''}", file=sys.stderr)
    return _INTERRUPTED


def _failed(error: Exception, code: int) -> int:
    if _debug:
        traceback.print_exception(error)
        return code
    print(f"rag: error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


_debug = False
_running = ""  # which command; none has begun


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("two-stage-rag"))
        raise typer.Exit


@app.callback()
def _options(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    global _debug, _running
    _debug, _running = debug, ctx.invoked_subcommand or ""


@app.command()
def ingest(
    paths: Annotated[
        list[Path],
        typer.Argument(parser=as_path, metavar="PATH", help="Files and folders; .jsonl holds a document a line."),
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
    """Bring the collection up to date with files and folders."""
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


@app.command(
    context_settings={"allow_extra_args": True},
    epilog="Each hit has its final score, 0 to 1, the probability that the reranker gives it, and its place in the "
    'first stage: "first stage #5 ↑1" was the fifth there and is one higher now; "↓1": one lower; "=": the same.',
)
def query(
    ctx: typer.Context,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The question, in quotes.")],
    top_n: Annotated[
        int | None,
        typer.Option(metavar="N", help="Candidates of the first stage, instead of RAG_TOP_N (50 unless set)."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(metavar="K", help="Hits to print, instead of RAG_TOP_K (5 unless set).")
    ] = None,
    reranker: Annotated[
        str | None, typer.Option(metavar="NAME", help="Instead of RAG_RERANKER (embedded unless set).")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="P", help="Drop hits with a lower rerank probability, instead of RAG_THRESHOLD (none unless set)."
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            metavar="A",
            help="Weight of the rerank score, 0 to 1, instead of RAG_ALPHA (unless set, each reranker's own).",
        ),
    ] = None,
    per_document: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Hits of one document at most, instead of RAG_PER_DOCUMENT (no bound unless set).",
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Filter on metadata, in quotes: --where 'year>=2020'; also >, <, <=, = and !=; = again for any of "
            "several, != for none of them. 2020 is a number and true a truth value; the text is 'year=\"2020\"'. Or "
            "once, the whole filter in JSON, as from Python.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find the passages that answer a question."""
    from pipeline.core import Pipeline
    from pipeline.display import print_result

    if ctx.args:
        whole = shlex.join(["rag", "query", " ".join([text, *ctx.args])])
        raise SettingsError(f"rag query takes one TEXT: put the question in quotes, as in {whole}")
    text = as_typed(text)
    if not _is_unicode(text):
        raise SettingsError("the query is not in UTF-8: set a locale that is, such as LC_ALL=C.UTF-8")
    asked = [as_typed(condition) for condition in where or []]
    conditions = parse_where(asked)
    settings = _settings()
    # What they say of a query that went another way is in its result.
    for part in ("pipeline.reranking", "pipeline.cascade"):
        logging.getLogger(part).setLevel(logging.ERROR)
    with Pipeline.from_settings(settings if reranker is None else settings.with_reranker(reranker)) as rag:
        result = rag.query(
            text,
            top_n=top_n,
            top_k=top_k,
            threshold=threshold,
            alpha=alpha,
            where=conditions,
            per_document=per_document,
        )
        if conditions and not result.candidates and rag.store.count().chunks:
            result = replace(result, warnings=[*result.warnings, *how_read(asked)])
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
        list[Path] | None,
        typer.Argument(parser=as_path, metavar="PATH", help="Files and folders to compare with, too."),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what a cut-off ingest left, while nothing else writes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check that the collection is whole, and in step with PATH.

    Exit code 0: it is.
    """
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
    """Bring an exported file into the collection."""
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


_OPERATORS = {">=": "gte", "<=": "lte", ">": "gt", "<": "lt"}
# The document's own, which are texts. Of a file both are its path.
_OWN = frozenset({"source", "document_id"})


def parse_where(conditions: list[str]) -> Where:
    """``["lang=en", "year>=2020"]`` -> ``{"lang": "en", "year": {"gte": 2020}}``; or a filter in JSON as it is.

    A value that is JSON (2020, 1.5, true, "2020" in quotes) is taken as such, anything else as text. The same key
    with ``=`` more than once means any of the values, with ``!=`` none. A ``source`` or ``document_id`` is text, or any
    path that leads to the file.

    Raises:
        SettingsError: a condition is not of this form.
    """
    whole = [where for condition in conditions if (where := _in_json(condition)) is not None]
    if whole and len(conditions) > 1:
        raise SettingsError("--where: a filter in JSON stands alone; write all of it as JSON")
    if whole:
        return whole[0]
    found: dict[str, list[tuple[str, Any]]] = {}
    for condition in conditions:
        key, operator, text = _parts(condition)
        values = _names(text) if key in _OWN and operator not in _OPERATORS else [_json_or_text(text)]
        found.setdefault(key, []).extend((operator, value) for value in values)
    return {key: _condition(key, asked) for key, asked in found.items()}


def _in_json(condition: str) -> Where | None:
    """A filter as in Python; None for a condition of the other form."""
    try:
        value = json.loads(condition)
    except ValueError:
        return None
    return value if isinstance(value, dict | list) else None


def _condition(key: str, asked: list[tuple[str, Any]]) -> Any:
    """What is asked of one key, operators and values, as in Python."""
    kinds = sorted({"a range" if operator in _OPERATORS else operator for operator, _ in asked})
    if len(kinds) > 1:
        raise SettingsError(f"--where: {key} has both {kinds[0]} and {kinds[1]}")
    if kinds == ["a range"]:
        return {_OPERATORS[operator]: value for operator, value in asked}
    values = [value for _, value in asked]
    wanted = values if len(values) > 1 else values[0]
    return {"not": wanted} if kinds == ["!="] else wanted


def how_read(conditions: list[str]) -> list[str]:
    """What values were taken for, where they might have been meant otherwise: for a search that finds nothing."""
    notes = []
    for condition in conditions:
        if _in_json(condition) is not None:
            continue
        key, operator, text = _parts(condition)
        value = _json_or_text(text)
        if isinstance(value, str) or (key in _OWN and operator not in _OPERATORS):
            continue
        if operator in _OPERATORS:
            meant = f"a date is written 2024-01-01: --where '{key}{operator}2024-01-01'"
        else:
            meant = f"a text is written in quotes: --where '{key}{operator}\"{text}\"'"
        notes.append(f"{text} was read as a {'truth value' if isinstance(value, bool) else 'number'}; {meant}")
    return notes


def _parts(condition: str) -> tuple[str, str, str]:
    """Key, operator and value."""
    match = re.fullmatch(r"\s*([^=<>!]+?)\s*(>=|<=|==?|!=|>|<)(?!\s*[=<>])\s*(.*)", condition, re.DOTALL)
    if match is None:
        raise SettingsError(
            f"--where {condition!r}: expected KEY=VALUE, or KEY with !=, >=, <=, > or < and a value, all of it in "
            "quotes, as the shell has a meaning of its own for !, > and <: --where 'year>=2020'"
        )
    key, operator, text = match.groups()
    return key, "=" if operator == "==" else operator, text


def _names(text: str) -> list[Any]:
    from pipeline.ingestion.loaders import real_source

    value = _json_or_text(text)
    name = value if isinstance(value, str) else text
    return list(dict.fromkeys([name, real_source(Path(name))]))


def as_typed(text: str) -> str:
    """An argument as it was typed. Where the locale is not in UTF-8, Python makes lone surrogates of what it cannot
    decode; what is no UTF-8 either, as a file's name may be, stays so."""
    if _is_unicode(text):
        return text
    try:
        return os.fsencode(text).decode()
    except UnicodeError:
        return text


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


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
