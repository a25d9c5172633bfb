"""What is learned from: passages, questions with their relevant ones, and BM25's candidates, of several datasets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.dataset import Dataset, read_dataset
from pipeline.stores import bm25
from pipeline.types import Document

_DEPTH = 50
SEED = 7
"""Of the passages that are drawn where not all are used."""


@dataclass(frozen=True, slots=True)
class Share:
    """How much of a dataset is used."""

    passages: int | None = None
    """A random sample of so many, with the questions that are answered there; None for all."""
    questions: int = 1000
    """Of the others, at most so many are trained on."""
    held_back: int = 100
    """Questions to choose by; no other question about the same passages is trained on."""


SHARES = {
    "nq": Share(questions=2600, held_back=120),
    "squad": Share(questions=2800, held_back=120),
    "boolq": Share(questions=1500, held_back=60),
    "clapnq": Share(questions=300, held_back=0),
    "cmrc2018": Share(questions=5000, held_back=120),
    "drcd-dev": Share(questions=1800, held_back=60),
    "tldr-zh": Share(passages=2500, questions=700),
    "tldr-en": Share(passages=4000, questions=900),
    "tidb-docs-zh": Share(passages=2200, questions=1500, held_back=120),
    "medquad": Share(passages=1500, questions=700, held_back=60),
    "scifact": Share(questions=659, held_back=150),
}
"""What the model in the package learned from: questions in proportion to how good and how varied they are."""


@dataclass(slots=True)
class Question:
    """A labelled question; passages are numbers in :attr:`Questions.passages`."""

    dataset: str
    text: str
    relevant: list[int]
    candidates: list[tuple[int, float]]
    """BM25's, with its scores, best first."""
    held_back: bool


@dataclass(slots=True)
class Questions:
    """All of them, and the passages by dataset."""

    passages: list[str] = field(default_factory=list)
    by_dataset: dict[str, range] = field(default_factory=dict)
    all: list[Question] = field(default_factory=list)


def read_questions(folder: Path, shares: dict[str, Share], seed: int = SEED) -> Questions:
    """Reads datasets in BEIR's layout, which are folders of ``folder``, by their names."""
    found = Questions()
    for name, share in shares.items():
        dataset = read_dataset(folder / name)
        random = Random(f"{seed} {name}")
        documents = {document.id: document for document in dataset.documents()}
        drawn = [documents[id_] for id_ in shuffled(documents, random)[: share.passages]]
        numbers = {document.id: len(found.passages) + place for place, document in enumerate(drawn)}
        found.by_dataset[name] = range(len(found.passages), len(found.passages) + len(drawn))
        found.passages.extend(map(_text, drawn))
        found.all.extend(_questions(dataset, drawn, numbers, share, random))
    return found


def shuffled(ids: Iterable[str], random: Random) -> list[str]:
    """The same order for the same random numbers, in whatever order the ids come."""
    kept = sorted(ids)
    random.shuffle(kept)
    return kept


def _questions(
    dataset: Dataset, documents: Sequence[Document], numbers: dict[str, int], share: Share, random: Random
) -> Iterator[Question]:
    relevant = {
        id_: [numbers[document] for document, grade in grades.items() if grade > 0 and document in numbers]
        for id_, grades in dataset.qrels.items()
        if all(document in numbers for document, grade in grades.items() if grade > 0)
    }
    ids = sorted(id_ for id_, documents in relevant.items() if documents)
    random.shuffle(ids)
    held_back = ids[: share.held_back]
    theirs = {number for id_ in held_back for number in relevant[id_]}
    trained = [id_ for id_ in ids[share.held_back :] if theirs.isdisjoint(relevant[id_])][: share.questions]
    chosen = held_back + trained
    first = min(numbers.values(), default=0)
    ranked = bm25_candidates(documents, [dataset.queries[id_] for id_ in chosen])
    for place, (id_, candidates) in enumerate(zip(chosen, ranked, strict=True)):
        listed = [(first + number, score) for number, score in candidates]
        yield Question(dataset.name, dataset.queries[id_], relevant[id_], listed, place < len(held_back))


def bm25_candidates(documents: Sequence[Document], queries: Sequence[str]) -> Iterator[list[tuple[int, float]]]:
    """For each query the best 50 documents that share a word with it, and their scores, as the store would find them.

    That is if each is one chunk.
    """
    words: dict[int, int] = {}
    weights = _matrix([bm25.chunk_vector(document.title, document.text) for document in documents], words)
    frequency = np.asarray((weights > 0).sum(axis=0)).ravel()
    # Qdrant's inverse document frequency.
    weights = weights.multiply(np.log(1 + (len(documents) - frequency + 0.5) / (frequency + 0.5))).tocsr()
    asked = _matrix([bm25.query_vector(query) for query in queries], dict(words))[:, : weights.shape[1]]
    for row in asked:
        scores = (row @ weights.T).toarray()[0]
        best = np.argsort(-scores, kind="stable")[:_DEPTH]
        yield [(int(number), float(scores[number])) for number in best if scores[number] > 0]


def _matrix(vectors: Sequence[Any], words: dict[int, int]) -> Any:
    import scipy.sparse

    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    for row, sparse in enumerate(vectors):
        rows.extend([row] * len(sparse.indices))
        columns.extend(words.setdefault(index, len(words)) for index in sparse.indices)
        values.extend(sparse.values)
    return scipy.sparse.csr_matrix((values, (rows, columns)), shape=(len(vectors), len(words)), dtype=np.float32)


def fused(lists: Sequence[Sequence[tuple[int, float]]], limit: int = _DEPTH) -> list[tuple[int, float]]:
    """Distribution-based score fusion, as Qdrant's: a list's mean plus and minus three deviations are 0 and 1."""
    totals: dict[int, float] = {}
    for ranked in lists:
        scores: NDArray[np.float64] = np.array([score for _, score in ranked])
        if not len(scores):
            continue
        spread = 6 * (scores.std(ddof=1) if len(scores) > 1 else 0.0)
        low = scores.mean() - spread / 2
        for number, score in ranked:
            share = (score - low) / spread if spread else 0.5
            totals[number] = totals.get(number, 0.0) + min(1.0, max(0.0, share))
    return sorted(totals.items(), key=lambda pair: -pair[1])[:limit]


def _text(document: Document) -> str:
    return f"{document.title}\n{document.text}" if document.title else document.text
