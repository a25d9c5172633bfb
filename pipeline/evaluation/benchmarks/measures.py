"""What the commands measure, and how it is kept while it runs. Defaults are those of ``all``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import SettingsError
from pipeline.evaluation.benchmarks import report
from pipeline.stores.storage import Storage

_QUICK_QUERIES = 20
_MODELS = Path(__file__).parents[2] / "models"


@dataclass
class Run:
    """A benchmark under way. What it has is written after each step, so that a run that is cut off is not lost."""

    file: Path
    result: dict[str, Any] = field(default_factory=dict)

    def say(self, line: str) -> None:
        """Tells the person how far it is."""
        print(line, file=sys.stderr)

    def save(self, **parts: Any) -> None:
        """Takes parts of the result, in place of what there was of them, and writes the file."""
        self.result |= parts
        report.write_json(self.file, self.result)


def peers(
    run: Run,
    folder: Path,
    embedder: str,
    reranker: str,
    work: Path,
    *,
    names: list[str] | None = None,
    queries: int = 50,
    rounds: int = 3,
    url: str | None = None,
    quick: bool = False,
    top_ns: Sequence[int] = (20, 50, 100),
    clients: Sequence[int] = (1, 8),
) -> None:
    """Ours beside other libraries; what there is, is saved after each step of each system."""
    from pipeline.embedders.sentence_transformers import SentenceTransformersEmbedder
    from pipeline.evaluation.benchmarks import passages, systems
    from pipeline.evaluation.benchmarks import peers as comparison
    from pipeline.evaluation.dataset import read_dataset

    dataset = read_dataset(folder, min(queries, _QUICK_QUERIES) if quick else queries)
    # A worker has another working directory.
    embedder, reranker = (str(Path(name).absolute()) if Path(name).is_dir() else name for name in (embedder, reranker))
    specs = systems.chosen(systems.systems(embedder, reranker), names)
    work.mkdir(parents=True, exist_ok=True)
    pythons = {spec.name: systems.python_of(spec, (work / "environments").absolute(), run.say) for spec in specs}
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
        clients=clients,
        rounds=1 if quick else rounds,
    )
    where = f"the server {url}" if url else "qdrant-client's local mode (a folder, brute force in Python)"
    amounts = f"{len(pieces)} passages, {len(dataset.queries)} queries of {dataset.name}"

    def save(found: dict[str, comparison.Measured]) -> None:
        results = comparison.summaries(specs, found, plan)
        notes = [
            *comparison.agreement(results),
            f"{amounts}; peers that use Qdrant use {where}",
            *(f"left out: {name} {reason}" for name, reason in systems.LEFT_OUT.items()),
        ]
        part = {
            "dataset": dataset.name,
            "queries": len(dataset.queries),
            "passages": len(pieces),
            "embedder": embedder,
            "reranker": reranker,
            "rounds": plan.rounds,
            "systems": results,
            "notes": notes,
        }
        run.save(peers=part)

    comparison.run_peers(specs, plan, run.say, save)


def limit(run: Run, folder: Path, seconds: float) -> None:
    """The embedded models' arithmetic beside a large matrix product."""
    from itertools import islice

    from pipeline.evaluation.benchmarks.limit import measure_limit
    from pipeline.evaluation.dataset import read_dataset

    dataset = read_dataset(folder, 1)
    texts = [f"{document.title}\n{document.text}" for document in islice(dataset.documents(), 32)]
    query = next(iter(dataset.queries.values()))
    run.save(
        limit=measure_limit(_MODELS / "embedder", _MODELS / "reranker", query, texts, seconds=seconds, say=run.say)
    )


def scale(
    run: Run,
    folder: Path,
    work: Path,
    sizes: list[int],
    *,
    distinct: int,
    queries: int,
    storages: Sequence[Storage] = (Storage("none", False),),
) -> None:
    """The embedded store at several sizes and with its vectors kept in several ways; saved after each size."""
    import numpy as np

    from pipeline.build import build_embedder
    from pipeline.evaluation.benchmarks.passages import cut
    from pipeline.evaluation.benchmarks.scale import run_scale
    from pipeline.evaluation.dataset import read_dataset
    from pipeline.settings import Settings

    dataset = read_dataset(folder, queries)
    embedder = build_embedder(Settings(embedder="embedded", data_dir=work))
    texts = [passage["text"] for passage in cut(dataset, embedder.tokenizer, min(distinct, max(sizes)))]
    run.say(f"scale: embedding {len(texts)} texts")
    vectors = embedder.embed_documents(texts)
    asked = np.stack([embedder.embed_query(query) for query in dataset.queries.values()])
    rows: list[dict[str, Any]] = []
    for some in run_scale(sizes, storages, texts, vectors, asked, work.absolute(), run.say):
        rows += some
        run.save(scale=rows)


def ingest(run: Run, folder: Path, embedder: str, work: Path, *, documents: int, rounds: int) -> None:
    """Ingest beside a plain loop of sentence-transformers with the same model."""
    from pipeline.build import build_embedder
    from pipeline.evaluation.benchmarks.ingest import measure_ingest
    from pipeline.evaluation.benchmarks.passages import cut
    from pipeline.evaluation.dataset import read_dataset
    from pipeline.settings import Settings

    settings = Settings(
        embedder="sentence-transformers", embedding_model=embedder, reranker="none", data_dir=work / "ingest"
    )
    texts = [passage["text"] for passage in cut(read_dataset(folder, 1), build_embedder(settings).tokenizer, documents)]
    run.save(ingest=measure_ingest(texts, embedder, settings, rounds=rounds, say=run.say))


def rerank(run: Run, folder: Path, reranker: str, work: Path, *, device: str, candidates: int, rounds: int) -> None:
    """Reranking beside sentence-transformers with the same model."""
    from pipeline.evaluation.benchmarks.rerank import measure_rerank, pairs_of
    from pipeline.evaluation.dataset import read_dataset
    from pipeline.rerankers.cross_encoder import CrossEncoderReranker

    dataset = read_dataset(folder, 1)
    query = next(iter(dataset.queries.values()))
    tokenizer = CrossEncoderReranker(reranker, device=device, cache_dir=work / "models").tokenizer
    if tokenizer is None:
        raise SettingsError(f"--reranker {reranker}: it has no fast tokenizer to cut texts with")
    long = [f"{document.title}\n{document.text}" for document in dataset.documents()]
    texts = pairs_of(query, long, tokenizer, candidates)
    if len(texts) < candidates:
        raise SettingsError(f"{dataset.name} has {len(texts)} texts that are long enough, not {candidates}")
    run.save(rerank=measure_rerank(query, texts, reranker, work, device=device, rounds=rounds, say=run.say))
