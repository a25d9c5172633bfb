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

_CANDIDATES = 50
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
    """BM25's best 50, with its scores, best first."""
    held_back: bool
    """Whether it is for choosing, not for training."""
    by_words: NDArray[np.float32] | None
    """BM25's scores of all the dataset's passages, 0 where no word is shared; kept of those held back, or of all."""


@dataclass(slots=True)
class Questions:
    """All of them, and the passages by dataset."""

    passages: list[str] = field(default_factory=list)
    by_dataset: dict[str, range] = field(default_factory=dict)
    all: list[Question] = field(default_factory=list)


def read_questions(
    folder: Path, shares: dict[str, Share], seed: int = SEED, *, words_of_all: bool = False
) -> Questions:
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
        found.all.extend(_questions(dataset, drawn, numbers, share, random, words_of_all))
    return found


def shuffled(ids: Iterable[str], random: Random) -> list[str]:
    """The same order for the same random numbers, in whatever order the ids come."""
    kept = sorted(ids)
    random.shuffle(kept)
    return kept


def _questions(
    dataset: Dataset,
    documents: Sequence[Document],
    numbers: dict[str, int],
    share: Share,
    random: Random,
    words_of_all: bool,
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
    for place, (id_, scores) in enumerate(
        zip(chosen, bm25_scores(documents, [dataset.queries[id_] for id_ in chosen]), strict=True)
    ):
        best = np.argsort(-scores, kind="stable")[:_CANDIDATES]
        listed = [(first + int(number), float(scores[number])) for number in best if scores[number] > 0]
        held = place < len(held_back)
        by_words = scores if held or words_of_all else None
        yield Question(dataset.name, dataset.queries[id_], relevant[id_], listed, held, by_words)


def bm25_scores(documents: Sequence[Document], queries: Sequence[str]) -> Iterator[NDArray[np.float32]]:
    """For each query the scores of all documents, of shape (len(documents),), as the store would give them.

    That is if each is one chunk. A document that shares no word with the query has 0.
    """
    words: dict[int, int] = {}
    weights = _matrix([bm25.chunk_vector(document.title, document.text) for document in documents], words)
    frequency = np.asarray((weights > 0).sum(axis=0)).ravel()
    # Qdrant's inverse document frequency.
    weights = weights.multiply(np.log(1 + (len(documents) - frequency + 0.5) / (frequency + 0.5))).tocsr()
    asked = _matrix([bm25.query_vector(query) for query in queries], dict(words))[:, : weights.shape[1]]
    for row in asked:
        yield (row @ weights.T).toarray()[0].astype(np.float32)


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


def _text(document: Document) -> str:
    return f"{document.title}\n{document.text}" if document.title else document.text
