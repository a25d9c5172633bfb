"""The second stage with its fallbacks: who scores, and who answers where the first choice fails."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.errors import RerankerError
from pipeline.interfaces import Reranker
from pipeline.types import Candidate, RerankScore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reranked:
    """What the second stage came to."""

    reranker: Reranker | None
    """Who answered; None keeps the order of the first stage."""
    scores: list[RerankScore] | None
    """One a candidate, or None where no reranker answered."""
    failures: list[RerankerError] = field(default_factory=list)
    """Of those asked before; not empty means that a fallback answered."""

    @property
    def name(self) -> str:
        """Name of who answered."""
        return "none" if self.reranker is None else self.reranker.name


def rerank(query: str, candidates: Sequence[Candidate], chain: Sequence[Reranker | None]) -> Reranked:
    """Asks the first of the chain, and the next one where it fails; None in the chain never fails.

    An error that the operator must mend (a wrong key, model or address) is raised at once: a fallback would hide it
    for good. So is the last one's error.

    Raises:
        RerankerError: no reranker of the chain answered, or one is set up wrongly.
    """
    failures: list[RerankerError] = []
    for place, reranker in enumerate(chain):
        try:
            return Reranked(reranker, _score(reranker, query, candidates), failures)
        except RerankerError as error:
            if error.operator or place + 1 == len(chain):
                raise
            log.warning("reranker %s failed, the next one is asked: %s", error.provider, error)
            failures.append(error)
    raise ValueError("the chain of rerankers is empty")


def _score(reranker: Reranker | None, query: str, candidates: Sequence[Candidate]) -> list[RerankScore] | None:
    if reranker is None:
        return None
    if not candidates:
        return []
    scores = reranker.score(query, [candidate.chunk.full_text for candidate in candidates])
    if len(scores) != len(candidates):
        raise RerankerError(
            f"reranker {reranker.name} gave {len(scores)} scores for {len(candidates)} texts", provider=reranker.name
        )
    return scores
