"""The second stage: scores for the candidates, and who answers where the first choice fails or time runs out."""

from __future__ import annotations

import logging
import math
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import accumulate

from tokenizers import Tokenizer

from pipeline import deadline
from pipeline.calibration import Calibration
from pipeline.errors import RerankerError
from pipeline.interfaces import Reranker
from pipeline.score_cache import ScoreCache
from pipeline.scoring import logit
from pipeline.text import well_formed
from pipeline.types import Candidate, RerankScore
from pipeline.windows import Passage, TokenCounts, Window, is_limited, shorten_query, windows, without_limits

log = logging.getLogger(__name__)

# Where nothing is known of a reranker's pace yet: few enough to be soon done, enough to measure by.
_FIRST_SLICE = 4
# Characters that a passage counts with at least: the query and whatever each call takes cost something, too.
_LEAST = 64
# Share of the time left that one slice may be expected to take; what is over is used by the next one.
_CAUTION = 0.7
# Weight of the measurements before the newest one.
_BEFORE = 0.5
# What the pace is multiplied by where it left no room for a single passage.
_FORGETTING = 0.8


class Scorer:
    """A reranker with everything that is the same for all of them.

    Blank passages get the lowest score and are not sent; equal ones are scored once; scores that are known come from
    the cache; passages too long for the model are scored in windows. Safe to share between threads.

    ``tokenizer`` counts for rerankers whose own tokenizer is out of reach. ``calibrations`` looks a calibration up by
    the reranker's name, model and revision; scores are as the reranker gave them, for the order is made of these.
    """

    def __init__(
        self,
        reranker: Reranker,
        *,
        tokenizer: Tokenizer,
        cache: ScoreCache | None = None,
        calibrations: Callable[[str], Calibration | None] | None = None,
    ) -> None:
        self.reranker = reranker
        self._tokenizer = tokenizer
        self._cache = cache
        self._calibrations = calibrations
        self._calibration: tuple[str, Calibration | None] | None = None
        self._counts: tuple[Tokenizer, TokenCounts] | None = None  # and whose tokens are counted
        self._seconds = self._characters = 0.0  # what reading took, and how much was read
        self._calls = 0  # that share the model now
        self._loading: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def identity(self) -> str | None:
        """Name, model and revision; None where the reranker does not say which model it runs."""
        model = getattr(self.reranker, "identity", None)
        return f"{self.reranker.name} {model}" if model else None

    @property
    def calibration(self) -> Calibration | None:
        """The map from its raw scores to probabilities, if there is one."""
        identity = self.identity
        if identity is None or self._calibrations is None:
            return None
        known = self._calibration
        if known is None or known[0] != identity:
            known = self._calibration = (identity, self._calibrations(identity))
        return known[1]

    def loaded(self, until: float) -> bool:
        """Whether the model is loaded by then; if it is not, that goes on."""
        load: Callable[[], None] | None = getattr(self.reranker, "load", None)
        if load is None:
            return True
        with self._lock:
            if self._loading is None:
                self._loading = threading.Thread(target=without_errors, args=[load], name="load fallback")
                self._loading.start()
        self._loading.join(max(0.0, until - time.monotonic()))
        return not self._loading.is_alive()

    def score(self, query: str, passages: Sequence[Passage], until: float | None = None) -> list[RerankScore | None]:
        """One score a passage, in input order; None for those that were not reached.

        ``until`` is a moment on ``time.monotonic``. A reranker that keeps deadlines by itself fails if it cannot
        score all until then; any other gets as many passages, from the first on, as are expected to be done by then.

        Raises:
            RerankerError: the reranker failed, its answer has another length than the question, or holds no scores.
        """
        distinct = [passage for passage in dict.fromkeys(passages) if passage.whole.strip()]
        whose = self._whose() if self._cache is not None else None
        known: dict[Passage, RerankScore] = {}
        if self._cache is not None and whose is not None:
            known = self._cache.get(whose, query, distinct)
        fresh = self._in_time(query, [passage for passage in distinct if passage not in known], until)
        if self._cache is not None and whose is not None and fresh:
            self._cache.put(whose, query, fresh)
        known |= fresh
        lowest = 0.0 if self.reranker.scale == "probability" else logit(0.0)
        blank = RerankScore(lowest, 0.0)
        return [known.get(passage, None if passage.whole.strip() else blank) for passage in passages]

    def _whose(self) -> str | None:
        """Under which name scores are cached: with the settings that change them, which a calibration does not have."""
        identity = self.identity
        return identity and f"{identity}, {self.reranker.scale} {getattr(self.reranker, 'variant', '')}"

    def _in_time(self, query: str, passages: Sequence[Passage], until: float | None) -> dict[Passage, RerankScore]:
        """Scores of the passages, or of as many from the first on as are expected to be done in time."""
        scores: dict[Passage, RerankScore] = {}
        if not passages:
            return scores
        keeps = until is None or getattr(self.reranker, "keeps_deadline", False)
        query, cut = self._windows(query, passages)
        with self._underway():
            while len(scores) < len(passages):
                part = cut[len(scores) :]
                start = time.monotonic()
                efforts = self._efforts(part)
                sharing = self._calls
                if until is not None and not keeps:
                    part = part[: self._fitting(efforts, (until - start) / sharing)]
                if not part:
                    break
                try:
                    with deadline.until(until) if until is not None else nullcontext():
                        best = self._judged(query, part)
                except deadline.DeadlinePassedError:  # other calls had the model meanwhile
                    break
                scores.update(zip(passages[len(scores) :], best, strict=False))
                self._measured(efforts[: len(part)], (time.monotonic() - start) / sharing)
        return scores

    @contextmanager
    def _underway(self) -> Iterator[None]:
        """While it lasts one more call shares the model, and has so much less of it."""
        with self._lock:
            self._calls += 1
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1

    def _efforts(self, cut: Sequence[Sequence[Window]]) -> list[int]:
        """How many characters must be read to score each passage, given its windows; 0 where nothing must be."""
        read = iter(self._tokens_read([window.text for one in cut for window in one]))
        return [sum(max(len(window.text), _LEAST) for window in one if next(read) is None) for one in cut]

    def _tokens_read(self, texts: Sequence[str]) -> list[int | None]:
        """Tokens of the texts that the reranker has read and kept."""
        found: Callable[[Sequence[str]], list[int | None]] | None = getattr(self.reranker, "tokens_read", None)
        return [None] * len(texts) if found is None else found(texts)

    def _fitting(self, efforts: Sequence[int], left: float) -> int:
        """How many of the passages, from the first on, can be expected to be scored in the seconds that are left."""
        if left <= 0:
            return 0
        with self._lock:
            seconds, characters = self._seconds, self._characters
        if not characters:
            unread = list(accumulate(effort > 0 for effort in efforts))
            return bisect_right(unread, _FIRST_SLICE)
        count = bisect_right(list(accumulate(efforts)), left * _CAUTION * characters / max(seconds, 1e-9))
        if not count:
            with self._lock:  # so that one slow call does not keep the reranker out for good
                self._seconds *= _FORGETTING
        return count

    def _measured(self, efforts: Sequence[int], seconds: float) -> None:
        """Learns the pace, in sums, so that a call counts by what it read."""
        read = [effort for effort in efforts if effort]
        if len(read) < min(_FIRST_SLICE, len(efforts)):  # what the other passages took would count as reading
            return
        with self._lock:
            self._seconds = _BEFORE * self._seconds + seconds
            self._characters = _BEFORE * self._characters + sum(read)

    def _judged(self, query: str, cut: Sequence[Sequence[Window]]) -> list[RerankScore]:
        """One score a passage: that of its best window."""
        texts = [window.text for one in cut for window in one]
        try:
            scores = self.reranker.score(query, texts)
        except (TimeoutError, ConnectionError) as error:  # of one that somebody else wrote: ours say it themselves
            name = self.reranker.name
            raise RerankerError(
                f"{name} raised {type(error).__name__}{f': {error}' if str(error) else ''}",
                provider=name,
                retryable=True,
            ) from error
        if not isinstance(scores, Sequence) or not all(isinstance(score, RerankScore) for score in scores):
            raise RerankerError(
                f"reranker {self.reranker.name} gave no list of RerankScore, but {_shown(scores)}",
                provider=self.reranker.name,
            )
        if len(scores) != len(texts):
            raise RerankerError(
                f"reranker {self.reranker.name} gave {len(scores)} scores for {len(texts)} texts",
                provider=self.reranker.name,
            )
        broken = sum(not _is_score(score) for score in scores)
        if broken:  # NaN has no place in an order: it would stand anywhere, even first, and stay in the cache
            raise RerankerError(
                f"reranker {self.reranker.name} gave no finite raw score with a probability in [0, 1] for {broken} of "
                f"{len(texts)} texts",
                provider=self.reranker.name,
            )
        rest = iter(scores)
        best = []
        for one in cut:
            judged = [(next(rest), window) for window in one]
            score, window = max(judged, key=lambda pair: pair[0].raw)
            # Plain floats, whatever numbers a reranker gives: NumPy's are not for JSON.
            best.append(RerankScore(float(score.raw), float(score.probability), window.span))
        return best

    def _windows(self, query: str, passages: Sequence[Passage]) -> tuple[str, list[list[Window]]]:
        max_tokens = getattr(self.reranker, "max_tokens", None)
        if max_tokens is None:
            return query, [[Window(passage.whole, None)] for passage in passages]
        tokenizer = getattr(self.reranker, "tokenizer", None) or self._tokenizer
        clean = [Passage(well_formed(passage.title), well_formed(passage.text)) for passage in passages]
        apart = getattr(self.reranker, "apart", False)
        counts = self._counting(tokenizer)
        query, room = shorten_query(well_formed(query), counts.tokenizer, max_tokens, apart=apart)
        return query, windows(clean, counts, room, self._tokens_read)

    def _counting(self, tokenizer: Tokenizer) -> TokenCounts:
        """Counts whole texts; a copy of the tokenizer, where it needs one, is made once."""
        known = self._counts
        # A tokenizer that was used as it is may be set to cut or pad by its model meanwhile.
        if known is None or known[0] is not tokenizer or is_limited(known[1].tokenizer):
            known = self._counts = (tokenizer, TokenCounts(without_limits(tokenizer)))
        return known[1]


def without_errors(*loads: Callable[[], None]) -> None:
    """Loads; scoring raises an error again, where somebody hears it."""
    for load in loads:
        with suppress(Exception):
            load()


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _is_score(score: RerankScore) -> bool:
    try:
        return math.isfinite(score.raw) and 0.0 <= score.probability <= 1.0  # NaN, too, is not
    except (TypeError, ValueError, OverflowError):  # no number, or an integer beyond all floats
        return False


@dataclass(frozen=True, slots=True)
class Reranked:
    """What the second stage came to."""

    reranker: Reranker | None
    """Who answered; None keeps the order that there was before."""
    scores: list[RerankScore | None] | None
    """One a candidate, None for those that were not asked for or that time did not reach; None as a whole where no
    reranker answered."""
    failures: list[RerankerError] = field(default_factory=list)
    """Of those asked before; not empty means that a fallback answered."""
    asked: int = 0
    """For how many candidates a score was asked for."""
    standing: Sequence[Candidate] | None = None
    """The candidates with the ranks and scores that the reranker's are fused with; None: those of the first stage."""
    calibration: Calibration | None = None
    """The map from the reranker's raw scores to probabilities, if there is one; ``scores`` have its own."""
    warnings: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of who answered."""
        return "none" if self.reranker is None else self.reranker.name


def rerank(
    query: str,
    passages: Sequence[Passage],
    chain: Sequence[Scorer | None],
    until: float | None = None,
    best: Sequence[int] | None = None,
) -> Reranked:
    """Asks the first of the chain, and the next one where it fails; None in the chain never fails.

    ``best`` are the places of those passages that the first of the chain is to score, in this order; None: all.

    Until ``until`` (a moment on ``time.monotonic``) there is an answer. So a reranker that waits for others may take
    half of what is left where a fallback stands behind it that needs time, too.

    An error that the operator must mend (a wrong key, model or address) is raised at once: a fallback would hide it
    for good. So is the last one's error.

    Raises:
        RerankerError: no reranker of the chain answered, or one is set up wrongly.
    """
    failures: list[RerankerError] = []
    for place, scorer in enumerate(chain):
        if scorer is None:
            return Reranked(None, None, failures)
        if not passages:
            return Reranked(scorer.reranker, [], failures)
        limit = until
        if until is not None and any(chain[place + 1 :]) and getattr(scorer.reranker, "keeps_deadline", False):
            now = time.monotonic()
            limit = now + (until - now) / 2
        asked = len(passages) if best is None or place else len(best)
        if until is not None and place and not scorer.loaded(until):
            nothing: list[RerankScore | None] = [None] * len(passages)
            warning = f"reranker {scorer.reranker.name} is still loading"
            return Reranked(scorer.reranker, nothing, failures, asked, warnings=[warning])
        places = range(len(passages)) if best is None or place else best
        try:
            found = scorer.score(query, [passages[i] for i in places], limit)
        except RerankerError as error:
            if error.operator or place + 1 == len(chain):
                raise
            log.warning("reranker %s failed, the next one is asked: %s", error.provider, error)
            failures.append(error)
            continue
        scores = dict(zip(places, found, strict=True))
        return Reranked(
            scorer.reranker,
            [scores.get(i) for i in range(len(passages))],
            failures,
            len(places),
            calibration=scorer.calibration,
        )
    raise ValueError("the chain of rerankers is empty")
