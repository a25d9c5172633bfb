"""Weight in the fusion and map to a probability, on the questions that were held back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.metrics import metrics_by_query
from pipeline.scoring import standardise
from pipeline.stores import hybrid
from pipeline.stores.common import DENSE, SPARSE, depth
from pipeline.training.late.fitting import Model
from pipeline.training.late.questions import Questions

ALPHAS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
_METRIC = "ndcg@10"
_DEPTH = 50


@dataclass(frozen=True, slots=True)
class Case:
    """A question held back: its candidates' numbers with the scores of both stages, and all that are relevant."""

    dataset: str
    candidates: Sequence[int]
    first: Sequence[float]
    second: Sequence[float]
    relevant: Sequence[int]


def choose(
    model: Model, questions: Questions, of_question: Sequence[int], *, say: Callable[[str], None]
) -> dict[str, Any]:
    """What :func:`best_weight` makes of the questions held back."""
    import torch

    cases = []
    for place, question in enumerate(questions.all):
        if not question.held_back:
            continue
        candidates = first_stage(model.states.embeddings, questions, place, of_question[place])
        numbers, first = [number for number, _ in candidates], [score for _, score in candidates]
        with torch.inference_mode():
            found = model.scores([of_question[place]], numbers)[0].tolist()
        cases.append(Case(question.dataset, numbers, first, found, question.relevant))
    return best_weight(cases, say=say)


def best_weight(cases: Iterable[Case], *, say: Callable[[str], None]) -> dict[str, Any]:
    """The weight with the best mean of the datasets' nDCG@10 over the hybrid first stage's candidates.

    ``scale`` and ``bias`` make of a score the logit of the share that is relevant among candidates with that score
    (Platt, 1999). ``measured`` has nDCG@10 by dataset and weight; weight 0 is the first stage alone.
    """
    from sklearn.linear_model import LogisticRegression

    qrels: dict[str, dict[str, dict[str, int]]] = {}
    rankings: dict[str, dict[float, dict[str, list[str]]]] = {}
    scores: list[float] = []
    labels: list[bool] = []
    for place, case in enumerate(cases):
        scores.extend(case.second)
        labels.extend(number in case.relevant for number in case.candidates)
        name = str(place)
        qrels.setdefault(case.dataset, {})[name] = {str(number): 1 for number in case.relevant}
        first, second = standardise(case.first)[0], standardise(case.second)[0]
        for alpha in ALPHAS:
            final = [(1 - alpha) * one + alpha * two for one, two in zip(first, second, strict=True)]
            order = np.argsort(-np.array(final), kind="stable")
            ranked = rankings.setdefault(case.dataset, {}).setdefault(alpha, {})
            ranked[name] = [str(case.candidates[at]) for at in order]
    measured = {
        dataset: {
            alpha: fmean(metrics_by_query(qrels[dataset], ranked, {_METRIC: "nDCG@10"})[_METRIC].values())
            for alpha, ranked in by_alpha.items()
        }
        for dataset, by_alpha in rankings.items()
    }
    means = {alpha: fmean(by_alpha[alpha] for by_alpha in measured.values()) for alpha in ALPHAS}
    for dataset, by_alpha in [*measured.items(), ("mean", means)]:
        say(f"{dataset:14}" + " ".join(f"{alpha:g}: {value:.4f}" for alpha, value in by_alpha.items()))
    fitted = LogisticRegression(C=1e6).fit(np.array(scores)[:, None], labels)
    return {
        "scale": float(fitted.coef_[0, 0]),
        "bias": float(fitted.intercept_[0]),
        "default_alpha": max(means, key=lambda alpha: means[alpha]),
        "measured": {
            dataset: {f"{alpha:g}": round(value, 4) for alpha, value in by_alpha.items()}
            for dataset, by_alpha in measured.items()
        },
    }


def first_stage(
    embeddings: NDArray[np.float32], questions: Questions, place: int, sequence: int
) -> list[tuple[int, float]]:
    """Number and fused score of the best 50 passages of the question's dataset, found as the store finds them.

    ``embeddings`` are those of the passages, by number, and of the questions: this one's is that of ``sequence``.
    """
    question = questions.all[place]
    passages = questions.by_dataset[question.dataset]
    cosines = embeddings[passages.start : passages.stop] @ embeddings[sequence]
    words = question.by_words
    if words is None:
        raise ValueError(f"question {place} is without BM25's scores")
    by_name = {DENSE: cosines, SPARSE: words}

    def ask(asked: Sequence[hybrid.Question[int]]) -> list[dict[int, float]]:
        found = []
        for name, ids in asked:
            scores = by_name[name]
            numbers = np.argsort(-scores, kind="stable")[: depth(_DEPTH)].tolist() if ids is None else ids
            found.append({n: float(scores[n]) for n in numbers if name == DENSE or scores[n] > 0})
        return found

    best = list(hybrid.search(ask).items())[:_DEPTH]
    return [(passages.start + number, score) for number, score in best]
