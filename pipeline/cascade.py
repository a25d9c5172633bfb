"""The cascade: a quick reranker looks at all candidates, and the pipeline's own then reads the best third of them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.errors import RerankerError
from pipeline.interfaces import Reranker
from pipeline.reranking import Reranked, Scorer, rerank
from pipeline.scoring import final_scores, logit, order
from pipeline.types import Candidate
from pipeline.windows import Passage, passages_of

log = logging.getLogger(__name__)

# One of so many candidates is read in the second step. On questions held back from training the embedded cross-encoder
# has the same nDCG@10, within 0.003, with 24 to 100 % of 50; on README's technical set it has 0.710 where it reads all,
# 0.709 with a third and 0.707 with 30 %.
_SHARE = 3


@dataclass(frozen=True, slots=True)
class Cascade:
    """What goes before a slow reranker, so that it need not read every candidate."""

    reranker: Reranker
    """The quick one, of the first step."""
    least: int | None = None
    """Candidates that the second step reads where a third is fewer; None: as many as hits are asked for."""


def rerank_candidates(
    query: str,
    candidates: Sequence[Candidate],
    chain: Sequence[Scorer | None],
    until: float | None,
    *,
    quick: Scorer | None,
    least: int,
) -> Reranked:
    """The second stage over a query's candidates, in two steps where there is a ``quick`` one for the first.

    The second step reads the best third, but not fewer than ``least``. Only who was asked for does: a fallback gets all
    candidates, as the first stage had them.

    Raises:
        RerankerError: no reranker of the chain answered, or one is set up wrongly.
    """
    passages = passages_of(candidates)
    asked = chain[0]
    if quick is None or asked is None or not candidates:
        return rerank(query, passages, chain, until)
    try:
        standing = first_step(query, candidates, passages, quick, until)
    except RerankerError as error:
        if error.operator:
            raise
        log.warning("the first step %s failed, %s reads all: %s", error.provider, asked.reranker.name, error)
        outcome = rerank(query, passages, chain, until)
        return replace(outcome, warnings=[f"the first step {error.provider} failed, so there was none: {error}"])
    outcome = rerank(query, passages, chain, until, second_step(standing, least))
    return outcome if outcome.failures else replace(outcome, standing=standing)


def first_step(
    query: str, candidates: Sequence[Candidate], passages: Sequence[Passage], quick: Scorer, until: float | None
) -> list[Candidate]:
    """The candidates, in the order given, with the ranks and scores that ``quick`` and the first stage give together.

    A score is a logit, on which scale the second step is fused with it. It may take half of the time that is left, as
    it is nothing without the second.
    """
    if until is not None:
        now = time.monotonic()
        until = now + (until - now) / 2
    scores = quick.score(query, passages, until)
    final = final_scores(candidates, scores, alpha=quick.reranker.default_alpha)
    ranks = {i: rank for rank, i in enumerate(order(candidates, final, scores), 1)}
    return [Candidate(candidate.chunk, logit(final[i]), ranks[i]) for i, candidate in enumerate(candidates)]


def second_step(standing: Sequence[Candidate], least: int) -> list[int]:
    """Which of the candidates the second step reads, best first: a third of them, but not fewer than ``least``."""
    best = sorted(range(len(standing)), key=lambda i: standing[i].rank)
    return best[: max(math.ceil(len(best) / _SHARE), least)]
