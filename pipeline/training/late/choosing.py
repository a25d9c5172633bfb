"""Weight in the fusion and map to a probability, on the questions that were held back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from pipeline.evaluation.metrics import metrics_by_query
from pipeline.scoring import standardise
from pipeline.stores import hybrid
from pipeline.stores.common import DENSE, SPARSE, depth
from pipeline.training.late.fitting import Model
from pipeline.training.late.questions import Questions

ALPHAS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
_METRIC = "ndcg@10"
_DEPTH = 50


def choose(
    model: Model, questions: Questions, of_question: Sequence[int], *, say: Callable[[str], None]
) -> dict[str, Any]:
    """The weight with the best mean of the datasets' nDCG@10 over the hybrid first stage's 50 candidates.

    ``scale`` and ``bias`` make of a score the logit of the share that is relevant among candidates with that score
    (Platt, 1999). ``measured`` has nDCG@10 by dataset and weight; weight 0 is the first stage alone.
    """
    import torch
    from sklearn.linear_model import LogisticRegression

    qrels: dict[str, dict[str, dict[str, int]]] = {}
    rankings: dict[str, dict[float, dict[str, list[str]]]] = {}
    scores: list[float] = []
    labels: list[bool] = []
    for place, question in enumerate(questions.all):
        if not question.held_back:
            continue
        candidates = first_stage(model, questions, place, of_question[place])
        with torch.inference_mode():
            found = model.scores([of_question[place]], [number for number, _ in candidates])[0].tolist()
        scores.extend(found)
        labels.extend(number in question.relevant for number, _ in candidates)
        name = str(place)
        qrels.setdefault(question.dataset, {})[name] = {str(number): 1 for number in question.relevant}
        first, second = standardise([score for _, score in candidates])[0], standardise(found)[0]
        for alpha in ALPHAS:
            final = [(1 - alpha) * one + alpha * two for one, two in zip(first, second, strict=True)]
            order = np.argsort(-np.array(final), kind="stable")
            ranked = rankings.setdefault(question.dataset, {}).setdefault(alpha, {})
            ranked[name] = [str(candidates[at][0]) for at in order]
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


def first_stage(model: Model, questions: Questions, place: int, sequence: int) -> list[tuple[int, float]]:
    """Number and fused score of the best 50 passages of the question's dataset, found as the store finds them."""
    question = questions.all[place]
    passages = questions.by_dataset[question.dataset]
    cosines = model.states.embeddings[passages.start : passages.stop] @ model.states.embeddings[sequence]
    words = question.by_words
    if words is None:
        raise ValueError(f"question {place} is not held back")
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
