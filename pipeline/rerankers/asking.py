"""What rerankers behind an endpoint do alike: which texts are sent, in what parts, and how failures come out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pipeline.remote import in_halves, reranker_error
from pipeline.retrying import RemoteError, RetryPolicy
from pipeline.text import well_formed
from pipeline.traffic import Gate, in_parts

RERANK_RETRY = RetryPolicy(connect_tries=2)
"""Somebody waits for the answer, and a fallback may give it: where nobody listens, that is soon known."""


def raw_scores(
    query: str,
    texts: Sequence[str],
    *,
    ask: Callable[[str, list[str], float], Any],
    read: Callable[[Any, int], list[float]],
    blank: float,
    provider: str,
    max_documents: int,
    retry: RetryPolicy,
    gate: Gate,
) -> list[float]:
    """One raw score a text, in input order.

    Blank texts, which endpoints refuse, are not sent and get ``blank``. Equal ones are sent once, and long lists in
    parts of ``max_documents``, several at once; a part that is too large goes in halves. ``ask(query, texts,
    timeout_s)`` makes one request, ``read(answer, count)`` takes the scores out of its answer.

    Raises:
        RerankerError: what went wrong in the end, as ``provider``'s.
    """
    clean = [well_formed(text) for text in texts]
    distinct = list(dict.fromkeys(text for text in clean if text.strip()))
    asked = well_formed(query)
    until = retry.begin()

    def answered(part: Sequence[str]) -> list[float]:
        answer = retry.run(lambda timeout_s: ask(asked, list(part), timeout_s), until=until, gate=gate)
        return read(answer, len(part))

    def scores(part: Sequence[str]) -> list[float]:
        try:
            return in_halves(part, answered)
        except RemoteError as error:
            failure = reranker_error(error, provider)
        # Outside the except block, so that an exception which quotes the key is not kept as context.
        raise failure

    found = in_parts(distinct, max_documents, scores, concurrency=gate.concurrency)
    known = dict(zip(distinct, found, strict=True))
    return [known.get(text, blank) for text in clean]
