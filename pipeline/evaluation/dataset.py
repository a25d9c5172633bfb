"""Labelled queries over a corpus; read from BEIR's layout (Thakur et al. 2021)."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import SettingsError
from pipeline.types import Document

# A few judged documents are missing from the corpus of some published datasets; more than this is another corpus.
_MISSING_ALLOWED = 0.1
# What stands over the scores where a file of judgements begins with names.
_HEADS = frozenset({"score", "relevance", "rel", "grade", "label"})


@dataclass(frozen=True, slots=True)
class Dataset:
    """Queries with judgements."""

    name: str
    queries: dict[str, str]
    """Query id -> text, only those with a relevant document."""
    qrels: dict[str, dict[str, int]]
    """Query id -> document id -> relevance, as judged; the same queries in the same order."""
    origin: Path | str = ""
    """Where it was read from."""
    corpus: Callable[[], Iterator[Document]] | None = None
    """Reads the documents as a stream; None where they are in the collection of the settings already."""

    def documents(self) -> Iterator[Document]:
        """The corpus; nothing where there is none."""
        return iter(()) if self.corpus is None else self.corpus()


def read_dataset(folder: Path, max_queries: int | None = None, split: str = "test") -> Dataset:
    """Reads queries and judgements of a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv (or of ``split``).

    Raises:
        SettingsError: a file is missing or malformed, or queries and judgements do not belong together.
    """
    judgements = f"qrels/{split}.tsv"
    for part in ("corpus.jsonl", "queries.jsonl", judgements):
        if not (folder / part).is_file():
            raise SettingsError(
                f"{folder} is no dataset in BEIR's layout: {part} is missing (needed: corpus.jsonl, queries.jsonl, "
                f"{judgements})"
            )
    return judged(
        name=folder.resolve().name,
        texts=_read_queries(folder / "queries.jsonl"),
        qrels=_read_qrels(folder / judgements),
        origin=folder.resolve(),
        corpus=lambda: _corpus(folder / "corpus.jsonl"),
        max_queries=max_queries,
    )


def judged(
    *,
    name: str,
    texts: dict[str, str],
    qrels: dict[str, dict[str, int]],
    origin: Path | str,
    corpus: Callable[[], Iterator[Document]] | None,
    max_queries: int | None,
) -> Dataset:
    """The dataset of the queries that have a relevant document, or of the first ``max_queries`` of them.

    Raises:
        SettingsError: a judged query is missing or has no text, or no query has a relevant document.
    """
    unknown = [id_ for id_ in qrels if id_ not in texts]
    if unknown:
        raise SettingsError(
            f"{origin}: {len(unknown)} of {len(qrels)} judged queries are not among the queries (such as "
            f"{unknown[0]!r}): do qrels and queries belong to the same dataset?"
        )
    answerable = [id_ for id_ in texts if any(grade > 0 for grade in qrels.get(id_, {}).values())]
    if not answerable:
        raise SettingsError(f"{origin}: no query has a relevant document in its judgements")
    chosen = answerable[:max_queries]
    empty = [id_ for id_ in chosen if not texts[id_].strip()]
    if empty:
        raise SettingsError(
            f"{origin}: {len(empty)} of {len(chosen)} judged queries have no text, such as {empty[0]!r}"
        )
    return Dataset(
        name=name,
        queries={id_: texts[id_] for id_ in chosen},
        qrels={id_: qrels[id_] for id_ in chosen},
        origin=origin,
        corpus=corpus,
    )


def check_documents(dataset: Dataset, known: Set[str]) -> str | None:
    """Compares the relevant documents with those that exist; a line to show where a few are missing.

    Raises:
        SettingsError: so many are missing that the judgements are of another corpus.
    """
    relevant = {id_ for grades in dataset.qrels.values() for id_, grade in grades.items() if grade > 0}
    missing = sorted(relevant - known)
    if len(missing) > _MISSING_ALLOWED * len(relevant):
        raise SettingsError(
            f"{dataset.origin}: {len(missing)} of {len(relevant)} relevant documents are not in the corpus (such as "
            f"{missing[0]!r}): do qrels and corpus belong to the same dataset?"
        )
    if missing:
        return f"{len(missing)} of {len(relevant)} relevant documents are not in the corpus, such as {missing[0]!r}"
    return None


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file with their line numbers.

    Raises:
        SettingsError: the file cannot be read, or a line is no JSON object.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        value = json.loads(line)
                    except ValueError as error:
                        raise SettingsError(f"{path}, line {number}: not JSON ({error})") from error
                    if not isinstance(value, dict):
                        raise SettingsError(f"{path}, line {number}: not a JSON object")
                    yield number, value
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError | UnicodeDecodeError) -> SettingsError:
    """Says what else the file is, where its first bytes tell."""
    why = str(error)
    if isinstance(error, UnicodeDecodeError):
        with suppress(OSError), path.open("rb") as file:
            head = file.read(2)
            if head == b"\x1f\x8b":
                why = "it is compressed by gzip; unpack it first"
            elif head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                why = "it is in UTF-16; save it as UTF-8"
            else:
                why = f"it is not in UTF-8 ({error})"
    return SettingsError(f"{path} cannot be read: {why}")


def _read_queries(path: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, line in json_lines(path):
        id_, text = _field(line, "_id", path, number), _field(line, "text", path, number)
        if texts.setdefault(id_, text) != text:
            raise SettingsError(f"{path}, lines {lines[id_]} and {number}: two queries have the id {id_!r}")
        lines.setdefault(id_, number)
    return texts


def _corpus(path: Path) -> Iterator[Document]:
    seen: dict[str, int] = {}  # hashes, as a corpus is read as a stream
    for number, line in json_lines(path):
        id_ = _field(line, "_id", path, number)
        content = hash((str(line.get("title") or ""), str(line.get("text") or "")))
        if seen.setdefault(id_, content) != content:
            first = next(earlier for earlier, one in json_lines(path) if str(one.get("_id")) == id_)
            raise SettingsError(f"{path}, lines {first} and {number}: two documents have the id {id_!r}")
        yield Document(
            id=id_,
            text=str(line.get("text") or ""),
            title=str(line.get("title") or ""),
            metadata=line.get("metadata") or {},
        )


def _field(line: dict[str, Any], name: str, path: Path, number: int) -> str:
    if line.get(name) is None:
        raise SettingsError(f"{path}, line {number}: no {name!r}")
    return str(line[name])


def _read_qrels(path: Path) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    places: dict[tuple[str, str], int] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    lines = csv.reader(io.StringIO(text), delimiter="\t")
    try:
        rows = list(lines)
    except csv.Error as error:  # as of an id that begins with a quotation mark
        raise SettingsError(f"{path}, line {lines.line_num}: {error}") from error
    for number, row in enumerate(rows, 1):
        if not row or (number == 1 and (row[0] == "query-id" or row[-1].strip().lower() in _HEADS)):
            continue
        grade = _grade(row[2]) if len(row) == 3 else None
        if grade is None:
            raise SettingsError(f"{path}, line {number}: {_what_else(row)}")
        query_id, document_id, _ = row
        if qrels.setdefault(query_id, {}).setdefault(document_id, grade) != grade:
            raise SettingsError(
                f"{path}, lines {places[query_id, document_id]} and {number}: {document_id!r} has two grades for "
                f"query {query_id!r}"
            )
        places.setdefault((query_id, document_id), number)
    return qrels


def _grade(text: str) -> int | None:
    """A whole number, which some write as "1.0"."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None


def _what_else(row: list[str]) -> str:
    """What is wrong with a line of judgements, in words."""
    needed = "expected query-id, corpus-id and score, by tabs"
    if len(row) == 3:
        return f"{needed}, and a score is a whole number, not {row[2]!r}"
    fields = " ".join(row).split()
    if len(fields) == 4 and _grade(fields[3]) is not None:
        return f"{needed}; this is TREC's format: write its first, third and fourth field, by tabs"
    if len(row) == 1 and len(fields) == 3:
        return f"{needed}, and these are by spaces"
    return needed
