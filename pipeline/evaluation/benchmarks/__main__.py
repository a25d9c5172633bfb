"""``python -m pipeline.evaluation.benchmarks peers|limit|scale|ingest|all``: see ``--help``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pipeline.errors import RagError, SettingsError
from pipeline.evaluation.benchmarks import machine, report
from pipeline.evaluation.benchmarks.ingest import print_ingest

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
_QUICK_QUERIES = 20
_MODELS = Path(__file__).parents[2] / "models"

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
DistinctOption = Annotated[int, typer.Option(min=1, help="Texts that are embedded; more chunks are noisy copies.")]
SecondsOption = Annotated[float, typer.Option(min=0.1, help="Time for each measured rate.")]


@app.command()
def peers(
    dataset: DatasetArgument,
    embedder: EmbedderOption,
    reranker: RerankerOption,
    out: OutOption = Path("runs/benchmarks"),
    work: WorkOption = Path(".rag/benchmarks"),
    system: SystemOption = None,
    queries: QueriesOption = 50,
    top_n: TopNOption = "20,50,100",
    clients: ClientsOption = "1,8",
    rounds: RoundsOption = 3,
    qdrant_url: UrlOption = None,
    quick: QuickOption = False,
) -> None:
    """Ours beside other libraries with the same weights, step by step in turn."""
    _run(
        out,
        lambda say: {
            "peers": _peers(
                dataset, embedder, reranker, work, system, queries, top_n, clients, rounds, qdrant_url, quick, say
            )
        },
    )


@app.command()
def limit(dataset: DatasetArgument, out: OutOption = Path("runs/benchmarks"), seconds: SecondsOption = 3.0) -> None:
    """The embedded models' arithmetic against a large matrix product on the same engine."""
    _run(out, lambda say: {"limit": _limit(dataset, seconds, say)})


@app.command()
def scale(
    dataset: DatasetArgument,
    out: OutOption = Path("runs/benchmarks"),
    work: WorkOption = Path(".rag/benchmarks"),
    sizes: SizesOption = "10000,100000,1000000",
    distinct: DistinctOption = 20_000,
    queries: QueriesOption = 100,
) -> None:
    """The embedded store at several sizes."""
    _run(out, lambda say: {"scale": _scale(dataset, work, _numbers(sizes, "--sizes"), distinct, queries, say)})


@app.command()
def ingest(
    dataset: DatasetArgument,
    embedder: EmbedderOption,
    out: OutOption = Path("runs/benchmarks"),
    work: WorkOption = Path(".rag/benchmarks"),
    documents: Annotated[int, typer.Option(min=1, help="Passages of the dataset that are ingested.")] = 500,
    rounds: RoundsOption = 3,
) -> None:
    """Ingest beside a plain loop of sentence-transformers with the same model."""
    _run(out, lambda say: {"ingest": _ingest(dataset, embedder, work, documents, rounds, say)})


@app.command(name="all")
def everything(
    dataset: DatasetArgument,
    embedder: EmbedderOption,
    reranker: RerankerOption,
    out: OutOption = Path("runs/benchmarks"),
    work: WorkOption = Path(".rag/benchmarks"),
    sizes: SizesOption = "10000,100000,1000000",
    queries: QueriesOption = 50,
    rounds: RoundsOption = 3,
    quick: QuickOption = False,
) -> None:
    """Peers, limit and scale (10,000 chunks with --quick), with what each has by default."""

    def measure(say: Callable[[str], None]) -> dict[str, Any]:
        steps = [10_000] if quick else _numbers(sizes, "--sizes")
        return {
            "peers": _peers(
                dataset, embedder, reranker, work, None, queries, "20,50,100", "1,8", rounds, None, quick, say
            ),
            "limit": _limit(dataset, 3.0, say),
            "scale": _scale(dataset, work, steps, 1_000 if quick else 20_000, queries, say),
        }

    _run(out, measure)


def _run(out: Path, measure: Callable[[Callable[[str], None]], dict[str, Any]]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 200)
    try:
        out.mkdir(parents=True, exist_ok=True)
        facts = machine.describe()
        result = {"command": sys.argv[1:], "machine": facts, **measure(lambda line: print(line, file=sys.stderr))}
    except RagError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, SettingsError) else 1) from error
    report.write_json(out / "results.json", result)
    report.write_plots(out, result)
    console.print(
        f"{facts['cpu']}, {facts['cores']} cores, {' '.join(facts['instruction_sets'])}; load {facts['load_average']}"
    )
    if "peers" in result:
        report.print_peers(result["peers"]["systems"], console)
        for line in result["peers"]["notes"]:
            console.print(line, highlight=False)
    if "limit" in result:
        report.print_limit(result["limit"], console)
    if "scale" in result:
        report.print_scale(result["scale"], console)
    if "ingest" in result:
        print_ingest(result["ingest"], console)
    console.print(f"results and plots: {out}")


def _peers(
    folder: Path,
    embedder: str,
    reranker: str,
    work: Path,
    names: list[str] | None,
    queries: int,
    top_n: str,
    clients: str,
    rounds: int,
    url: str | None,
    quick: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    from pipeline.embedders.sentence_transformers import SentenceTransformersEmbedder
    from pipeline.evaluation.benchmarks import passages, systems
    from pipeline.evaluation.benchmarks import peers as comparison
    from pipeline.evaluation.dataset import read_dataset

    top_ns, numbers = _numbers(top_n, "--top-n"), _numbers(clients, "--clients")
    dataset = read_dataset(folder, min(queries, _QUICK_QUERIES) if quick else queries)
    # A worker has another working directory.
    embedder, reranker = (str(Path(name).absolute()) if Path(name).is_dir() else name for name in (embedder, reranker))
    specs = systems.chosen(systems.systems(embedder, reranker), names)
    work.mkdir(parents=True, exist_ok=True)
    pythons = {spec.name: systems.python_of(spec, (work / "environments").absolute(), say) for spec in specs}
    model = SentenceTransformersEmbedder(embedder)
    pieces = passages.cut(dataset, model.tokenizer, 300 if quick else None)
    plan = comparison.Plan(
        dataset=dataset,
        passages=pieces,
        embedder=embedder,
        reranker=reranker,
        dimension=model.dimension,
        work=work.absolute(),
        pythons=pythons,
        url=url,
        top_ns=top_ns,
        clients=numbers,
        rounds=1 if quick else rounds,
    )
    found = comparison.run_peers(specs, plan, say)
    # Plain sentence-transformers is what the others build on; without it, the first.
    same = [spec.name for spec in specs if spec.same_weights and found[spec.name].failure is None]
    reference = "sentence-transformers" if "sentence-transformers" in same else next(iter(same), None)
    results = [
        comparison.summary(spec, found[spec.name], plan, found[reference] if reference and spec.same_weights else None)
        for spec in specs
    ]
    where = f"the server {url}" if url else "qdrant-client's local mode (a folder, brute force in Python)"
    notes = [
        *comparison.agreement(results),
        f"{len(pieces)} passages, {len(dataset.queries)} queries of {dataset.name}; peers that use Qdrant use {where}",
        *(f"left out: {name} {reason}" for name, reason in systems.LEFT_OUT.items()),
    ]
    return {
        "dataset": dataset.name,
        "queries": len(dataset.queries),
        "passages": len(pieces),
        "embedder": embedder,
        "reranker": reranker,
        "rounds": plan.rounds,
        "systems": results,
        "notes": notes,
    }


def _limit(folder: Path, seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    from itertools import islice

    from pipeline.evaluation.benchmarks.limit import measure_limit
    from pipeline.evaluation.dataset import read_dataset

    dataset = read_dataset(folder, 1)
    texts = [f"{document.title}\n{document.text}" for document in islice(dataset.documents(), 32)]
    query = next(iter(dataset.queries.values()))
    return measure_limit(_MODELS / "embedder", _MODELS / "reranker", query, texts, seconds=seconds, say=say)


def _ingest(
    folder: Path, embedder: str, work: Path, documents: int, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    from pipeline.build import build_embedder
    from pipeline.evaluation.benchmarks.ingest import measure_ingest
    from pipeline.evaluation.benchmarks.passages import cut
    from pipeline.evaluation.dataset import read_dataset
    from pipeline.settings import Settings

    settings = Settings(
        embedder="sentence-transformers", embedding_model=embedder, reranker="none", data_dir=work / "ingest"
    )
    texts = [passage["text"] for passage in cut(read_dataset(folder, 1), build_embedder(settings).tokenizer, documents)]
    return measure_ingest(texts, embedder, settings, rounds=rounds, say=say)


def _scale(
    folder: Path, work: Path, sizes: list[int], distinct: int, queries: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    import numpy as np

    from pipeline.build import build_embedder
    from pipeline.evaluation.benchmarks.passages import cut
    from pipeline.evaluation.benchmarks.scale import run_scale
    from pipeline.evaluation.dataset import read_dataset
    from pipeline.settings import Settings

    dataset = read_dataset(folder, queries)
    embedder = build_embedder(Settings(embedder="embedded", data_dir=work))
    texts = [passage["text"] for passage in cut(dataset, embedder.tokenizer, min(distinct, max(sizes)))]
    say(f"scale: embedding {len(texts)} texts")
    vectors = embedder.embed_documents(texts)
    asked = np.stack([embedder.embed_query(query) for query in dataset.queries.values()])
    return run_scale(sizes, texts, vectors, asked, work.absolute(), say)


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
