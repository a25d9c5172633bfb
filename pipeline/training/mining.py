"""Lists to learn from: a query, a relevant passage, and passages that look relevant and are not."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from pipeline.evaluation.dataset import json_lines
from pipeline.reranking import Scorer
from pipeline.scoring import final_scores, logit
from pipeline.training.sources import Source
from pipeline.types import Candidate, Chunk, RerankScore
from pipeline.windows import Passage, passages_of

# A candidate that comes at least so near to the relevant passage's own score is taken for relevant, too: judgements are
# never complete. 0 is the lowest score of the list, 1 that of the relevant passage, both as logits, so that it does not
# matter how sure of itself a judge is. (After TopK-PercPos in Moreira et al., "NV-Retriever", 2024.)
_LIKELY_RELEVANT = 0.9
# Share of the negatives that is drawn from the whole collection, so that what is plainly irrelevant stays below.
_RANDOM = 0.25
# More relevant documents than this add little, and would let a few queries rule the training.
_MOST_POSITIVES = 3
# Of a relevant document that the first stage missed, so many chunks are looked at for the one that is meant.
_MOST_CHUNKS = 16
# Weight of the labels against the teacher's opinion: it keeps a teacher from unlearning what people said.
_LABELS = 0.5


#: "without a passage" are queries whose relevant documents are not there, "likely relevant" candidates left out.
COUNTED = ("queries", "without a passage", "lists", "hard negatives", "random negatives", "likely relevant")


@dataclass(frozen=True, slots=True)
class Example:
    """A list to rank; ``target`` is the share of the relevance that each passage has, and adds up to 1."""

    query: str
    passages: list[str]
    """The relevant one first."""
    target: list[float]


@dataclass(frozen=True, slots=True)
class Judge:
    """Who says which candidates are likely relevant although nobody judged them: teacher, or model to be trained."""

    scorer: Scorer
    alpha: float
    """Its weight against the first stage."""
    teaches: bool
    """Whether its scores become targets."""


class Miner:
    """Makes examples of one source.

    ``negatives`` a relevant passage: three quarters of them hard ones, drawn from the candidates of the first stage,
    the others from the whole collection. Left out are passages of relevant documents, texts equal to one of theirs,
    and likely relevant ones. Each query has a random generator of its own, so equal seeds give equal examples.
    """

    def __init__(self, source: Source, judge: Judge | None, *, negatives: int, seed: int) -> None:
        self.source = source
        self._judge = judge
        self._negatives = negatives
        self._hard = negatives - round(negatives * _RANDOM)
        self._seed = seed
        self._anywhere = source.sample(max(1000, 4 * negatives), seed)
        self.counts: Counter[str] = Counter()
        """By the names in :data:`COUNTED`."""

    def examples(self, query_id: str) -> Iterator[Example]:
        """One for each relevant document, three at most."""
        query = self.source.queries[query_id]
        random = Random(f"{self._seed}\0{self.source.name}\0{query_id}")
        candidates = self.source.candidates(query_id)
        grades = {id_: grade for id_, grade in self.source.qrels[query_id].items() if grade > 0}
        by_document = {id_: self._passages(id_, candidates) for id_ in grades}
        relevant = {_fold(one.chunk) for passages in by_document.values() for one in passages}
        allowed = {
            _fold(candidate.chunk): candidate
            for candidate in reversed(self.source.negatives(query_id, candidates))
            if _fold(candidate.chunk) not in relevant | {""}
        }
        # Twice what is needed, because likely relevant ones go.
        hard = random.sample(list(allowed.values()), min(len(allowed), 2 * self._hard))
        best = sorted((id_ for id_ in grades if by_document[id_]), key=lambda id_: -grades[id_])[:_MOST_POSITIVES]
        self.counts["queries"] += 1
        self.counts["without a passage"] += not best
        scores = self._scores(query, [*hard, *(one for id_ in best for one in by_document[id_])])
        for id_ in best:
            positive = max(by_document[id_], key=lambda one: (scores[one.chunk.id].raw if scores else 0.0, -one.rank))
            kept = self._unlikely(positive, hard, scores)
            yield self._example(query, positive, kept, grades, relevant | set(allowed), scores, random)

    def _passages(self, document_id: str, candidates: Sequence[Candidate]) -> list[Candidate]:
        """A relevant document's chunks, those that were recalled, or else all; blank ones teach nothing."""
        found = [one for one in candidates if one.chunk.document_id == document_id]
        if not found:
            lowest = min((one.score for one in candidates), default=0.0)
            found = [
                Candidate(chunk, lowest, len(candidates) + 1)
                for chunk in self.source.chunks(document_id)[:_MOST_CHUNKS]
            ]
        return [one for one in found if _fold(one.chunk)]

    def _scores(self, query: str, passages: Sequence[Candidate]) -> dict[str, RerankScore]:
        """By the chunk's id."""
        if self._judge is None:
            return {}
        scores = self._judge.scorer.score(query, passages_of(passages))
        return {one.chunk.id: score for one, score in zip(passages, scores, strict=True) if score is not None}

    def _unlikely(
        self, positive: Candidate, hard: Sequence[Candidate], scores: dict[str, RerankScore]
    ) -> list[Candidate]:
        """The hard ones that are not likely relevant, by the judge together with the first stage.

        Their scores are added whatever the fusion of queries is: reciprocal ranks do not say what is near.
        """
        if self._judge is None:
            return list(hard[: self._hard])
        among = [positive, *hard]
        final = final_scores(among, [scores[one.chunk.id] for one in among], alpha=self._judge.alpha)
        of_positive, *of_hard = map(logit, final)
        lowest = min(of_hard, default=of_positive)
        cut = lowest + _LIKELY_RELEVANT * (of_positive - lowest)
        kept = [one for one, score in zip(hard, of_hard, strict=True) if score < cut]
        self.counts["likely relevant"] += len(hard) - len(kept)
        return kept[: self._hard]

    def _example(
        self,
        query: str,
        positive: Candidate,
        hard: Sequence[Candidate],
        grades: Mapping[str, int],
        taken: set[str],
        scores: dict[str, RerankScore],
        random: Random,
    ) -> Example:
        others: dict[str, Chunk] = {}
        for chunk in random.sample(self._anywhere, len(self._anywhere)):
            if len(hard) + len(others) >= self._negatives:
                break
            if chunk.document_id in grades:  # also of its chunks that were not recalled, whose texts are not known here
                continue
            text = _fold(chunk)
            if text and text not in taken:
                others.setdefault(text, chunk)
        listed = [positive, *hard, *(Candidate(chunk, 0.0, 0) for chunk in others.values())]
        target = [1.0] + [0.0] * (len(listed) - 1)
        if self._judge is not None and self._judge.teaches:
            scores = scores | self._scores(query, listed[len(hard) + 1 :])
            target = taught(target, [logit(scores[one.chunk.id].probability) for one in listed])
        self.counts["lists"] += 1
        self.counts["hard negatives"] += len(hard)
        self.counts["random negatives"] += len(others)
        return Example(query, [_read(one, scores.get(one.chunk.id)) for one in listed], target)


def taught(labels: Sequence[float], logits: Sequence[float]) -> list[float]:
    """Half the labels and half the softmax of the teacher's logits."""
    highest = max(logits)
    weights = [math.exp(value - highest) for value in logits]
    total = math.fsum(weights)
    return [_LABELS * label + (1 - _LABELS) * w / total for label, w in zip(labels, weights, strict=True)]


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """A line of JSON an example; whole or not at all."""
    new = path.with_suffix(".new")
    with new.open("w", encoding="utf-8", errors="surrogatepass") as file:
        for example in examples:
            file.write(json.dumps(asdict(example)) + "\n")
    new.replace(path)


def read_examples(path: Path) -> list[Example]:
    """What :func:`write_examples` wrote."""
    return [Example(line["query"], line["passages"], line["target"]) for _, line in json_lines(path)]


def _read(candidate: Candidate, score: RerankScore | None) -> str:
    """The passage as the judge read it: of one too long for the model its best window."""
    chunk = candidate.chunk
    start, end = (score.window if score else None) or (0, len(chunk.text))
    return Passage(chunk.title, chunk.text[start:end]).whole


def _fold(chunk: Chunk) -> str:
    return " ".join(chunk.full_text.casefold().split())
