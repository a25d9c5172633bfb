"""Labelled queries in BEIR's layout (Thakur et al. 2021): corpus.jsonl, queries.jsonl, qrels/test.tsv."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import SettingsError
from pipeline.types import Document


@dataclass(frozen=True, slots=True)
class Dataset:
    """Queries with judgements; the corpus is read as a stream."""

    name: str
    folder: Path
    queries: dict[str, str]
    """Query id -> text, only those with a judgement."""
    qrels: dict[str, dict[str, int]]
    """Query id -> document id -> relevance, as judged."""

    def documents(self) -> Iterator[Document]:
        """The corpus, one document a line."""
        for number, line in _lines(self.folder / "corpus.jsonl"):
            yield Document(
                id=_field(line, "_id", self.folder / "corpus.jsonl", number),
                text=str(line.get("text", "")),
                title=str(line.get("title") or ""),
                metadata=line.get("metadata") or {},
            )


def read_dataset(folder: Path, max_queries: int | None = None) -> Dataset:
    """Reads queries and judgements.

    Raises:
        SettingsError: a file is missing or malformed, or queries and judgements do not belong together.
    """
    for part in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        if not (folder / part).is_file():
            raise SettingsError(
                f"{folder} is no dataset in BEIR's layout: {part} is missing (needed: corpus.jsonl, queries.jsonl, "
                "qrels/test.tsv)"
            )
    texts = {
        _field(line, "_id", folder / "queries.jsonl", number): _field(line, "text", folder / "queries.jsonl", number)
        for number, line in _lines(folder / "queries.jsonl")
    }
    qrels = _read_qrels(folder / "qrels" / "test.tsv")
    unknown = [id_ for id_ in qrels if id_ not in texts]
    if unknown:
        raise SettingsError(
            f"{folder}: {len(unknown)} of {len(qrels)} judged queries are not in queries.jsonl (such as "
            f"{unknown[0]!r}): do qrels and queries belong to the same dataset?"
        )
    judged = [id_ for id_ in texts if any(grade > 0 for grade in qrels.get(id_, {}).values())]
    if not judged:
        raise SettingsError(f"{folder}: no query has a relevant document in qrels/test.tsv")
    chosen = judged[:max_queries]
    return Dataset(
        name=folder.resolve().name,
        folder=folder,
        queries={id_: texts[id_] for id_ in chosen},
        qrels={id_: qrels[id_] for id_ in chosen},
    )


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    value = json.loads(line)
                except ValueError as error:
                    raise SettingsError(f"{path}, line {number}: not JSON ({error})") from error
                if not isinstance(value, dict):
                    raise SettingsError(f"{path}, line {number}: not a JSON object")
                yield number, value


def _field(line: dict[str, Any], name: str, path: Path, number: int) -> str:
    if name not in line:
        raise SettingsError(f"{path}, line {number}: no {name!r}")
    return str(line[name])


def _read_qrels(path: Path) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file, delimiter="\t"), 1):
            if not row or (number == 1 and row[0] == "query-id"):
                continue
            try:
                query_id, document_id, grade = row
                qrels.setdefault(query_id, {})[document_id] = int(grade)
            except ValueError as error:
                raise SettingsError(
                    f"{path}, line {number}: expected query-id, corpus-id and score, by tabs"
                ) from error
    return qrels
