"""Datasets of ``ir_datasets`` by name: an optional package that downloads what it does not have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.errors import MissingExtraError, SettingsError
from pipeline.evaluation.dataset import Dataset, judged
from pipeline.types import Document

PREFIX = "irds:"


def read_ir_dataset(name: str, max_queries: int | None = None) -> Dataset:
    """The dataset that ``ir_datasets`` calls ``name``, such as ``beir/scifact/test``.

    Raises:
        MissingExtraError: the package is not installed.
        SettingsError: it has no such dataset, cannot fetch it, or the dataset has no queries with judgements.
    """
    try:
        import ir_datasets
    except ImportError as error:
        raise MissingExtraError(
            f"{PREFIX}{name} needs the package ir-datasets: pip install 'two-stage-rag[ir-datasets]'"
        ) from error
    try:
        dataset = ir_datasets.load(name)
    except KeyError as error:
        raise SettingsError(f"ir_datasets has no dataset {name!r}: its catalogue lists the names") from error
    return from_ir_dataset(name, dataset, max_queries)


def from_ir_dataset(name: str, dataset: Any, max_queries: int | None = None) -> Dataset:
    """A dataset object of ``ir_datasets`` as ours.

    Raises:
        SettingsError: it lacks documents, queries or judgements, or they could not be fetched.
    """
    for kind in ("docs", "queries", "qrels"):
        if not getattr(dataset, f"has_{kind}")():
            raise SettingsError(f"{PREFIX}{name} has no {kind}: choose a part that has, such as {name}/test")
    try:
        texts = {str(query.query_id): _text(query) for query in dataset.queries_iter()}
        qrels: dict[str, dict[str, int]] = {}
        for judgement in dataset.qrels_iter():
            qrels.setdefault(str(judgement.query_id), {})[str(judgement.doc_id)] = int(judgement.relevance)
    except (OSError, RuntimeError) as error:  # its downloads fail with either
        raise _unfetched(name, error) from error
    return judged(
        name=name.replace("/", "-"),
        texts=texts,
        # Some collections judge queries that they do not have.
        qrels={id_: grades for id_, grades in qrels.items() if id_ in texts},
        origin=f"{PREFIX}{name}",
        corpus=lambda: _documents(name, dataset),
        max_queries=max_queries,
    )


def _documents(name: str, dataset: Any) -> Iterator[Document]:
    try:
        for document in dataset.docs_iter():
            title = str(getattr(document, "title", "") or "")
            text = str(document.text if hasattr(document, "text") else document.default_text())
            yield Document(id=str(document.doc_id), text=text, title=title)
    except (OSError, RuntimeError) as error:
        raise _unfetched(name, error) from error


def _unfetched(name: str, error: Exception) -> SettingsError:
    return SettingsError(f"{PREFIX}{name} could not be fetched: {error}")


def _text(query: Any) -> str:
    return str(query.text if hasattr(query, "text") else query.default_text())
