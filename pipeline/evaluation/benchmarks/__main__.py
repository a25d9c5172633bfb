"""``python -m pipeline.evaluation.benchmarks peers|limit|scale|ingest|rerank|all``: see ``--help``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from rich.console import Console

from pipeline.errors import RagError, SettingsError
from pipeline.evaluation.benchmarks import machine, measures, report
from pipeline.evaluation.benchmarks.measures import Run
from pipeline.stores.storage import Storage
from pipeline.types import Quantization

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
_OUT, _WORK = Path("runs/benchmarks"), Path(".rag/benchmarks")
_TOP_N, _CLIENTS, _SIZES = "20,50,100", "1,8", "10000,100000,1000000"

DatasetArgument = Annotated[Path, typer.Argument(help="Folder in BEIR's layout.")]
OutOption = Annotated[Path, typer.Option(help="Folder for results.json and the plots.")]
WorkOption = Annotated[Path, typer.Option(help="Folder for environments, stores and logs.")]
QueriesOption = Annotated[int, typer.Option(min=1, help="Queries of the dataset that are asked.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="At most 20 queries and 300 passages, one round.")]
EmbedderOption = Annotated[str, typer.Option(help="Bi-encoder of all systems: folder or Hugging Face name.")]
RerankerOption = Annotated[str, typer.Option(help="Cross-encoder of all systems: folder or Hugging Face name.")]
SystemOption = Annotated[list[str] | None, typer.Option("--system", help="Only this one; repeatable.")]
TopNOption = Annotated[str, typer.Option(help="Numbers of candidates, by commas.")]
ClientsOption = Annotated[str, typer.Option(help="Numbers of clients at once, by commas.")]
RoundsOption = Annotated[int, typer.Option(min=1, help="Times that everything is done.")]
UrlOption = Annotated[str | None, typer.Option(help="Qdrant server for all systems that use Qdrant; else local mode.")]
SizesOption = Annotated[str, typer.Option(help="Numbers of chunks, by commas.")]
DistinctOption = Annotated[int, typer.Option(min=1, help="Texts that are embedded; more chunks are copies, varied.")]
QuantizationOption = Annotated[
    list[str] | None, typer.Option(help="How vectors are kept: none or int8; repeatable, side by side.")
]
OnDiskOption = Annotated[bool, typer.Option("--on-disk", help="With vectors and BM25 index on disk.")]
OversamplingOption = Annotated[float, typer.Option(min=1, max=20, help="Of int8.")]
SecondsOption = Annotated[float, typer.Option(min=0.1, help="Time for each measured rate.")]


@app.command()
def peers(
    dataset: DatasetArgument,
    embedder: EmbedderOption,
    reranker: RerankerOption,
    out: OutOption = _OUT,
    work: WorkOption = _WORK,
    system: SystemOption = None,
    queries: QueriesOption = 50,
    top_n: TopNOption = _TOP_N,
    clients: ClientsOption = _CLIENTS,
    rounds: RoundsOption = 3,
    qdrant_url: UrlOption = None,
    quick: QuickOption = False,
) -> None:
    """Ours beside other libraries with the same weights, step by step in turn."""

    def measure(run: Run) -> None:
        measures.peers(
            run,
            dataset,
            embedder,
            reranker,
            work,
            names=system,
            queries=queries,
            rounds=rounds,
            url=qdrant_url,
            quick=quick,
            top_ns=_numbers(top_n, "--top-n"),
            clients=_numbers(clients, "--clients"),
        )

    _run(out, measure)


@app.command()
def limit(dataset: DatasetArgument, out: OutOption = _OUT, seconds: SecondsOption = 3.0) -> None:
    """The embedded models' arithmetic against a large matrix product on the same engine."""
    _run(out, lambda run: measures.limit(run, dataset, seconds))


@app.command()
def scale(
    dataset: DatasetArgument,
    out: OutOption = _OUT,
    work: WorkOption = _WORK,
    sizes: SizesOption = _SIZES,
    distinct: DistinctOption = 20_000,
    queries: QueriesOption = 100,
    quantization: QuantizationOption = None,
    on_disk: OnDiskOption = False,
    oversampling: OversamplingOption = 2.0,
) -> None:
    """The embedded store at several sizes."""

    def measure(run: Run) -> None:
        kinds, numbers = _quantizations(quantization or ["none"]), _numbers(sizes, "--sizes")
        storages = [Storage(kind, on_disk, oversampling) for kind in kinds]
        measures.scale(run, dataset, work, numbers, distinct=distinct, queries=queries, storages=storages)

    _run(out, measure)


@app.command()
def ingest(
    dataset: DatasetArgument,
    embedder: EmbedderOption,
    out: OutOption = _OUT,
    work: WorkOption = _WORK,
    documents: Annotated[int, typer.Option(min=1, help="Passages of the dataset that are ingested.")] = 2000,
    rounds: RoundsOption = 3,
) -> None:
    """Ingest beside a plain loop of sentence-transformers with the same model."""
    _run(out, lambda run: measures.ingest(run, dataset, embedder, work, documents=documents, rounds=rounds))


@app.command()
def rerank(
    dataset: DatasetArgument,
    reranker: RerankerOption,
    out: OutOption = _OUT,
    work: WorkOption = _WORK,
    candidates: Annotated[int, typer.Option(min=1, help="Texts that are reranked for one query.")] = 100,
    rounds: RoundsOption = 5,
    device: Annotated[str, typer.Option(help="cpu, or the GPU that both run on: cuda or mps.")] = "cpu",
) -> None:
    """Reranking beside CrossEncoder.predict of sentence-transformers with the same model."""

    def measure(run: Run) -> None:
        measures.rerank(run, dataset, reranker, work, device=device, candidates=candidates, rounds=rounds)

    _run(out, measure)


@app.command(name="all")
def everything(
    dataset: DatasetArgument,
    embedder: EmbedderOption,
    reranker: RerankerOption,
    out: OutOption = _OUT,
    work: WorkOption = _WORK,
    sizes: SizesOption = _SIZES,
    queries: QueriesOption = 50,
    rounds: RoundsOption = 3,
    quick: QuickOption = False,
) -> None:
    """Peers, limit and scale (10,000 chunks with --quick), with what each has by default."""

    def measure(run: Run) -> None:
        numbers = [10_000] if quick else _numbers(sizes, "--sizes")
        measures.peers(run, dataset, embedder, reranker, work, queries=queries, rounds=rounds, quick=quick)
        measures.limit(run, dataset, 3.0)
        measures.scale(run, dataset, work, numbers, distinct=1_000 if quick else 20_000, queries=queries)

    _run(out, measure)


def _run(out: Path, measure: Callable[[Run], None]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 200)
    run = Run(out / "results.json")
    try:
        out.mkdir(parents=True, exist_ok=True)
        facts = machine.describe()
        run.save(command=sys.argv[1:], machine=facts, finished=False)
        measure(run)
    except RagError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, SettingsError) else 1) from error
    run.save(finished=True)
    report.write_plots(out, run.result)
    console.print(
        f"{facts['cpu']}, {facts['cores']} cores, {' '.join(facts['instruction_sets'])}; load {facts['load_average']}"
    )
    report.print_all(run.result, console)
    console.print(f"results and plots: {out}")


def _quantizations(names: list[str]) -> list[Quantization]:
    known = get_args(Quantization)
    for name in names:
        if name not in known:
            raise SettingsError(f"--quantization {name!r}: there are {', '.join(known)}")
    return cast(list[Quantization], names)


def _numbers(text: str, option: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise SettingsError(f"{option} {text!r}: numbers by commas, such as 20,50,100") from error
    if min(numbers) < 1:
        raise SettingsError(f"{option} {text!r}: numbers must be at least 1")
    return numbers


if __name__ == "__main__":
    app()
