"""A small evaluation over deterministic parts, for tests of what is made of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.cascade import Cascade
from pipeline.core import Pipeline
from pipeline.evaluation.dataset import Dataset
from pipeline.evaluation.plan import RunSpec
from pipeline.evaluation.run import Evaluation, run_all
from pipeline.interfaces import Reranker
from pipeline.settings import Settings
from pipeline.types import Document
from tests.fakes import FakeEmbedder, FakeReranker, FakeStore

TEXTS = {
    "ports": "The server listens on port 6333 for HTTP and on port 6334 for gRPC requests.",
    "backup": "A snapshot of every collection is taken each night and copied to another machine.",
    "备份": "每天晚上都会对集合做一次快照,并复制到另一台机器。",
    "rerank": "A cross-encoder reads question & passage together, and gives <one> score.",
    "keys": "The API key stands in the header; a wrong key is answered with 401.",
    "folders/with space 100%": "Folders are read recursively; hidden files and folders are left out.",
}
QUERIES = {
    "q1": "port for gRPC requests",
    "q2": "snapshot each night",
    "q3": "晚上做快照",
    "q4": "which header has the key <b>?",
    "q5": "hidden folders",
}
QRELS = {
    "q1": {"ports": 1},
    "q2": {"backup": 2, "备份": 1},
    "q3": {"备份": 1},
    "q4": {"keys": 1, "rerank": 0},
    "q5": {"folders/with space 100%": 1},
}


def contrary() -> FakeReranker:
    """Prefers long texts, so that it puts some queries right and others wrong."""
    return FakeReranker({text: len(text) / 20 - 3 for text in TEXTS.values()}, name="contrary", default_alpha=0.8)


def dataset(queries: Sequence[str] = tuple(QUERIES)) -> Dataset:
    return Dataset(
        "a set", {id_: QUERIES[id_] for id_ in queries}, {id_: dict(QRELS[id_]) for id_ in queries}, origin="here"
    )


def filled_store() -> FakeStore:
    store = FakeStore()
    Pipeline(embedder=FakeEmbedder(), store=store).ingest(Document(id=id_, text=text) for id_, text in TEXTS.items())
    return store


def evaluation(
    specs: Sequence[RunSpec] = (RunSpec("hybrid", "none", 100), RunSpec("hybrid", "contrary", 4)),
    rerankers: Mapping[str, Reranker | None] | None = None,
    settings: Settings | None = None,
    queries: Sequence[str] = tuple(QUERIES),
    cascades: Mapping[str, Cascade | None] | None = None,
) -> Evaluation:
    return run_all(
        dataset(queries),
        settings or Settings(data_dir=Path("unused")),
        specs,
        FakeEmbedder(),
        filled_store(),
        {"none": None, "contrary": contrary()} if rerankers is None else rerankers,
        cascades,
        say=lambda line: None,
    )
