"""``python -m pipeline.training.joint.lists DATA --output lists.npz``: what the cross-encoder learns from.

For each question the hybrid first stage's candidates, as token ids, with the scores of first stage and late interaction
together. Made by the embedded models on the CPU, in some minutes; whoever trains needs the file alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.inference.folder import ModelFolder
from pipeline.inference.token_vectors import in_int8
from pipeline.models import EMBEDDER, LATE_INTERACTION
from pipeline.rerankers.late_interaction import max_sim, softplus
from pipeline.scoring import standardise
from pipeline.training.joint.made_up import made_up
from pipeline.training.late.choosing import first_stage
from pipeline.training.late.questions import SEED, Questions, read_questions
from pipeline.training.late.questions import SHARES as LATE_SHARES

QUERY_TOKENS, PASSAGE_TOKENS = 64, 256
"""Read of each, at most, without special tokens: the longest passages lose some that the engine has room for."""

_QUESTIONS = {
    "nq": 2600,
    "squad": 5000,
    "boolq": 3300,
    "clapnq": 300,
    "cmrc2018": 11000,
    "drcd-dev": 3600,
    "tldr-zh": 2500,
    "tldr-en": 4000,
    "tidb-docs-zh": 2200,
    "medquad": 1500,
    "scifact": 659,
}
SHARES = {name: replace(share, questions=_QUESTIONS[name]) for name, share in LATE_SHARES.items()}
"""The passages, and the questions held back, of :data:`pipeline.training.late.questions.SHARES`, and more questions."""

SENTENCES = {
    **dict.fromkeys(("nq", "squad", "boolq", "clapnq", "cmrc2018", "drcd-dev", "tidb-docs-zh"), 1),
    "scifact": 2,
}
"""Questions that are made up of each passage of a dataset; ``TITLED`` gives its title, too."""
TITLED = frozenset({"scifact"})

# How far down what is nearest to a made-up question is taken.
_NEAR = 30
# As in :mod:`pipeline.training.late.fitting`; a made-up question's own passage is nearer than any other.
_LIKELY_RELEVANT, _LIKELY_RELEVANT_MADE_UP = 0.95, 0.98
_BLOCK = 1024


@dataclass(slots=True)
class Ranked:
    """A question with its candidates; passages are numbers in :attr:`Lists.passages`."""

    question: int
    dataset: str
    made_up: bool
    held_back: bool
    candidates: NDArray[np.int32]
    relevant: NDArray[np.bool_]
    likely: NDArray[np.bool_]
    """Not judged, and so near that it may be relevant."""
    first: NDArray[np.float32]
    """Score of the first stage, standardised over the candidates."""
    known: NDArray[np.float32]
    """Score of the first stage and of late interaction together; 0 for a made-up question."""
    source: int
    """The passage that a made-up question was taken out of, which is no candidate; -1 for the others."""
    unfound: int
    """Relevant passages of one held back that the first stage has not found."""


@dataclass(slots=True)
class Lists:
    """Token ids, without special tokens, and what is ranked."""

    passages: list[NDArray[np.uint32]] = field(default_factory=list)
    questions: list[NDArray[np.uint32]] = field(default_factory=list)
    ranked: list[Ranked] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """As arrays in one file; :func:`load` reads it."""
        flat: dict[str, Any] = {
            "passages": np.concatenate(self.passages),
            "passages_sizes": [len(ids) for ids in self.passages],
            "questions": np.concatenate(self.questions),
            "questions_sizes": [len(ids) for ids in self.questions],
            "sizes": [len(one.candidates) for one in self.ranked],
        }
        for name in ("question", "dataset", "made_up", "held_back", "source", "unfound"):
            flat[name] = np.array([getattr(one, name) for one in self.ranked])
        for name in _BY_CANDIDATE:
            flat[name] = np.concatenate([getattr(one, name) for one in self.ranked])
        np.savez_compressed(path, **flat)


_BY_CANDIDATE = ("candidates", "relevant", "likely", "first", "known")


def load(path: Path) -> Lists:
    """What :meth:`Lists.save` wrote."""
    with np.load(path) as file:
        flat = {name: file[name] for name in file.files}
    columns = {name: _cut(flat[name], flat["sizes"]) for name in _BY_CANDIDATE}
    ranked = [
        Ranked(
            int(flat["question"][i]),
            str(flat["dataset"][i]),
            bool(flat["made_up"][i]),
            bool(flat["held_back"][i]),
            **{name: columns[name][i] for name in _BY_CANDIDATE},
            source=int(flat["source"][i]),
            unfound=int(flat["unfound"][i]),
        )
        for i in range(len(flat["question"]))
    ]
    return Lists(
        _cut(flat["passages"], flat["passages_sizes"]), _cut(flat["questions"], flat["questions_sizes"]), ranked
    )


def _cut(values: NDArray[Any], sizes: NDArray[np.int64]) -> list[NDArray[Any]]:
    return np.split(values, np.cumsum(sizes)[:-1])


def make_lists(questions: Questions, model: ModelFolder, seed: int, say: Callable[[str], None]) -> Lists:
    """``model`` is the late-interaction reranker on the whole embedder; ``questions`` have all of BM25's scores."""
    passages = list(questions.passages)
    vectors, tokens = _vectors(model, passages, say, query=False)
    asked, weighted = _vectors(model, [question.text for question in questions.all], say, query=True)
    embeddings = np.concatenate([vectors, asked])
    alpha = float(model.config["default_alpha"])
    ranked = []
    for place, question in enumerate(questions.all):
        found = dict(first_stage(embeddings, questions, place, len(passages) + place))
        lowest = min(found.values(), default=0.0)
        # What the first stage missed is learned from, but never ranked where that is measured.
        missed = [] if question.held_back else [number for number in question.relevant if number not in found]
        numbers = [*found, *missed]
        first = np.array(standardise([*found.values(), *[lowest] * len(missed)])[0], dtype=np.float32)
        own, weights = weighted[place]
        late = max_sim(own, softplus(weights), [tokens[number][0] for number in numbers]).tolist()
        relevant = np.isin(numbers, question.relevant)
        cosines = vectors[numbers] @ asked[place]
        mean = float((_of_dataset(vectors, questions, question.dataset) @ asked[place]).mean())
        best = float((vectors[question.relevant] @ asked[place]).max())
        ranked.append(
            Ranked(
                place,
                question.dataset,
                made_up=False,
                held_back=question.held_back,
                candidates=np.array(numbers, dtype=np.int32),
                relevant=relevant,
                likely=~relevant & (cosines >= mean + _LIKELY_RELEVANT * (best - mean)),
                first=first,
                known=(1 - alpha) * first + alpha * np.array(standardise(late)[0], dtype=np.float32),
                source=-1,
                unfound=len(question.relevant) - int(relevant.sum()),
            )
        )
        if (place + 1) % 1000 == 0:
            say(f"candidates of {place + 1} of {len(questions.all)} questions")
    texts = [question.text for question in questions.all]
    invented = list(_made_up(questions, seed))
    near = _embeddings(model, [text for _, text, _ in invented])
    for (number, text, rest), vector in zip(invented, near, strict=True):
        dataset = next(name for name, members in questions.by_dataset.items() if number in members)
        ranked.append(_ranked_made_up(vectors, vector, questions, dataset, number, len(texts), len(passages)))
        texts.append(text)
        passages.append(rest)
    return Lists(_ids(model, passages, PASSAGE_TOKENS), _ids(model, texts, QUERY_TOKENS), ranked)


def _ranked_made_up(
    vectors: NDArray[np.float32],
    vector: NDArray[np.float32],
    questions: Questions,
    dataset: str,
    number: int,
    question: int,
    rest: int,
) -> Ranked:
    members = questions.by_dataset[dataset]
    cosines = _of_dataset(vectors, questions, dataset) @ vector
    near = [place for place in np.argsort(-cosines, kind="stable")[: _NEAR + 1] if place != number - members.start]
    near = near[:_NEAR]
    mean, own = cosines.mean(), cosines[number - members.start]
    nothing = np.zeros(len(near) + 1, dtype=np.float32)
    return Ranked(
        question,
        dataset,
        made_up=True,
        held_back=False,
        candidates=np.array([rest, *(members.start + place for place in near)], dtype=np.int32),
        relevant=np.arange(len(near) + 1) == 0,
        likely=np.array([False, *(cosines[near] >= mean + _LIKELY_RELEVANT_MADE_UP * (own - mean))]),
        first=nothing,
        known=nothing,
        source=number,
        unfound=0,
    )


def _made_up(questions: Questions, seed: int) -> Iterator[tuple[int, str, str]]:
    """(passage, question, passage without it), for no passage that a question held back is about."""
    random = Random(seed)
    theirs = {number for question in questions.all if question.held_back for number in question.relevant}
    for dataset, sentences in SENTENCES.items():
        for number in questions.by_dataset.get(dataset, range(0)):
            if number in theirs:
                continue
            passage = questions.passages[number]
            for text, rest in made_up(passage, sentences, random, titled=dataset in TITLED):
                yield number, text, rest


def _of_dataset(vectors: NDArray[np.float32], questions: Questions, dataset: str) -> NDArray[np.float32]:
    members = questions.by_dataset[dataset]
    return vectors[members.start : members.stop]


def _vectors(
    model: ModelFolder, texts: Sequence[str], say: Callable[[str], None], *, query: bool
) -> tuple[NDArray[np.float32], list[tuple[NDArray[Any], NDArray[np.float32]]]]:
    """Embeddings, and of each text its token vectors, of passages as a query meets them, and their weights."""
    embeddings, tokens = [], []
    for start in range(0, len(texts), _BLOCK):
        own, found = model.both_vectors(texts[start : start + _BLOCK], query=query)
        embeddings.append(own)
        tokens += [(vectors if query else in_int8(vectors), weights) for vectors, weights in found]
        say(f"vectors of {min(start + _BLOCK, len(texts))} of {len(texts)} {'questions' if query else 'passages'}")
    return np.concatenate(embeddings), tokens


def _embeddings(model: ModelFolder, texts: Sequence[str]) -> NDArray[np.float32]:
    blocks = range(0, len(texts), _BLOCK)
    found = [model.both_vectors(texts[start : start + _BLOCK], query=True)[0] for start in blocks]
    return np.concatenate(found) if found else np.zeros((0, 1), np.float32)


def _ids(model: ModelFolder, texts: Sequence[str], longest: int) -> list[NDArray[np.uint32]]:
    return [
        np.array(ids[:longest], dtype=np.uint32)
        for start in range(0, len(texts), _BLOCK)
        for ids in model.ids(texts[start : start + _BLOCK])
    ]


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.training.joint.lists", description=__doc__)
    parser.add_argument("data", type=Path, help="folder of datasets in BEIR's layout: " + ", ".join(SHARES))
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    questions = read_questions(arguments.data, SHARES, words_of_all=True)
    model = ModelFolder(LATE_INTERACTION, "late-interaction", trunk=EMBEDDER, whole_trunk=True)
    make_lists(questions, model, SEED, partial(print, flush=True)).save(arguments.output)


if __name__ == "__main__":
    main()
