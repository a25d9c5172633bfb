"""From stage scores to the final order: pure functions over the candidates of one query.

One scale holds for every reranker: the logit of a probability. A cross-encoder answers on it; the answer of an
API that gives probabilities is brought to it. The first stage's scores (cosine, BM25, fused) have no absolute
meaning, so they are standardised over the candidates of the query and laid onto that scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.types import Candidate, RerankScore, StageFusion

# Probabilities of exactly 0 and 1 have no finite logit; float64's sigmoid is 1.0 from 37 on.
_MAX_LOGIT = 36.0
_RRF_K = 60


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x) in float64, without overflow at either end."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    e = math.exp(x)
    return e / (1.0 + e)


def logit(p: float) -> float:
    """Inverse of :func:`sigmoid`, cut to [-36, 36]."""
    if p <= 0.0:
        return -_MAX_LOGIT
    if p >= 1.0:
        return _MAX_LOGIT
    return max(-_MAX_LOGIT, min(_MAX_LOGIT, math.log(p) - math.log1p(-p)))


def standardise(values: Sequence[float]) -> tuple[list[float], float, float]:
    """Z-scores with the mean and (population) standard deviation they were made with.

    Equal values all become 0 and the deviation is then 0.
    """
    if not values:
        return [], 0.0, 0.0
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    # Rounding leaves a deviation of some 1e-17 where all values are equal: blowing it up would invent an order.
    if deviation <= 1e-12 * max(1.0, abs(mean)):
        return [0.0] * len(values), mean, 0.0
    return [(value - mean) / deviation for value in values], mean, deviation


def first_stage_scores(candidates: Sequence[Candidate]) -> list[float]:
    """Final scores where no reranker ran: sigmoid of the z-score of the first-stage score.

    In [0, 1] and in first-stage order, but relative to the candidates of this query: 0.5 is their mean. It is no
    probability of relevance and not comparable with a threshold.
    """
    z, _, _ = standardise([candidate.score for candidate in candidates])
    return [sigmoid(value) for value in z]


def final_scores(
    candidates: Sequence[Candidate],
    rerank: Sequence[RerankScore | None],
    *,
    alpha: float,
    fusion: StageFusion = "linear",
) -> list[float]:
    """Fused scores in [0, 1], one a candidate, in input order.

    ``linear``: with f and r the first-stage scores and the logits of the rerank probabilities of the candidates, z
    the z-score over the candidates, and m, s the mean and standard deviation of r::

        score = sigmoid(m + s * ((1 - alpha) * z(f) + alpha * z(r)))

    So the order is that of ``(1 - alpha) * z(f) + alpha * z(r)``, the first stage speaks on the reranker's own
    scale, and ``alpha=1`` gives the rerank probability itself. Where all rerank scores are equal (one candidate,
    or a reranker that cannot tell them apart) s is 0 and the first stage decides through the ties' order.

    ``rrf``: weighted reciprocal rank fusion of both stages (Cormack, Clarke and Büttcher, SIGIR 2009, with their
    k = 60), scaled so that the first of both stages has 1; no probability::

        score = (k + 1) * ((1 - alpha) / (k + first-stage rank) + alpha / (k + rerank rank))

    Candidates without a rerank score stand below the others, in first-stage order.
    """
    if len(candidates) != len(rerank):
        raise ValueError(f"{len(rerank)} rerank scores for {len(candidates)} candidates")
    scored = [(candidate, score) for candidate, score in zip(candidates, rerank, strict=True) if score is not None]
    fused = iter(_fused([pair[0] for pair in scored], [pair[1] for pair in scored], alpha, fusion))
    values = [None if score is None else next(fused) for score in rerank]
    lowest = min((value for value in values if value is not None), default=1.0)
    rest = iter(first_stage_scores([c for c, value in zip(candidates, values, strict=True) if value is None]))
    return [lowest * next(rest) if value is None else value for value in values]


def _fused(
    candidates: Sequence[Candidate], rerank: Sequence[RerankScore], alpha: float, fusion: StageFusion
) -> list[float]:
    if fusion == "rrf":
        by_rerank = sorted(range(len(rerank)), key=lambda i: (-rerank[i].raw, candidates[i].rank))
        ranks = {i: rank for rank, i in enumerate(by_rerank, 1)}
        return [
            (_RRF_K + 1) * ((1.0 - alpha) / (_RRF_K + candidate.rank) + alpha / (_RRF_K + ranks[i]))
            for i, candidate in enumerate(candidates)
        ]
    if alpha >= 1.0:
        return [score.probability for score in rerank]
    z_rerank, mean, deviation = standardise([logit(score.probability) for score in rerank])
    z_first, _, _ = standardise([candidate.score for candidate in candidates])
    return [
        sigmoid(mean + deviation * ((1.0 - alpha) * first + alpha * second))
        for first, second in zip(z_first, z_rerank, strict=True)
    ]


def order(
    candidates: Sequence[Candidate], scores: Sequence[float], rerank: Sequence[RerankScore | None] | None
) -> list[int]:
    """Indices of the candidates, best first.

    Those with a rerank score before those without; by score, then by the reranker's raw score (float64 sigmoids of
    large logits tie), then by first-stage rank.
    """

    def key(i: int) -> tuple[bool, float, float, int]:
        score = None if rerank is None else rerank[i]
        unscored = rerank is not None and score is None
        return (unscored, -scores[i], 0.0 if score is None else -score.raw, candidates[i].rank)

    return sorted(range(len(candidates)), key=key)
