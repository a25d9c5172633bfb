"""From candidates and what the second stage came to, to the hits and what has to be said about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline import scoring
from pipeline.ingestion.changes import answering, by_document
from pipeline.ingestion.copies import as_copy
from pipeline.interfaces import Store
from pipeline.reranking import Reranked
from pipeline.types import Candidate, Chunk, FirstStage, Hit, StageFusion

# Long documents that are remembered to be complete; beyond, the ledger is asked again.
_KNOWN = 100_000


@dataclass(frozen=True, slots=True)
class Answer:
    """The hits, and how they came about."""

    hits: list[Hit]
    reranker: str
    """Name of who answered."""
    reranked: int
    """Candidates that have a rerank score."""
    degraded: bool
    warnings: list[str]


def answer(
    candidates: Sequence[Candidate],
    outcome: Reranked,
    *,
    top_k: int,
    threshold: float | None,
    alpha: float | None,
    fusion: StageFusion,
    deadline_ms: float | None,
    per_document: int | None = None,
) -> Answer:
    """The best ``top_k`` hits over the threshold, of each document ``per_document`` at most.

    Where a fallback answered, or no reranker in time, weight and threshold are not applied, which were chosen for the
    one that was asked for, and the answer is degraded. Candidates that were not reranked, because time ran out or a
    cascade left them out, stand below; they are under every threshold, because nothing is known of them.
    """
    warnings = [*outcome.warnings, *(f"reranker {error.provider} failed: {error}" for error in outcome.failures)]
    reranked = sum(score is not None for score in outcome.scores or [])
    if outcome.failures:
        alpha = None
        if outcome.scores is None or reranked or not outcome.asked:
            warnings.append(f"{outcome.name} answered instead")
    degraded = bool(outcome.failures)
    if outcome.scores is not None and reranked < outcome.asked:
        applied = reranked and threshold is not None and not degraded
        unknown = "; the others are under every threshold" if applied else ""
        share = f"{reranked} of {outcome.asked} candidates"
        warnings.append(f"the deadline of {deadline_ms or 0:g} ms left time to rerank {share}{unknown}")
        if not reranked:
            outcome = replace(outcome, reranker=None, scores=None)
            degraded = True
    if threshold is not None and (degraded or outcome.scores is None):
        threshold = None
        why = "it was meant for another reranker" if outcome.scores else "without a reranker there is no probability"
        warnings.append(f"the threshold was not applied: {why}")
    hits = _hits(candidates, outcome, alpha=alpha, fusion=fusion, threshold=threshold, per_document=per_document)
    return Answer(hits[:top_k], outcome.name, reranked, degraded, warnings)


def _hits(
    candidates: Sequence[Candidate],
    outcome: Reranked,
    *,
    alpha: float | None,
    fusion: StageFusion,
    threshold: float | None,
    per_document: int | None,
) -> list[Hit]:
    rerank = outcome.scores
    standing = candidates if outcome.standing is None else outcome.standing
    if outcome.reranker is None or rerank is None:
        scores = scoring.first_stage_scores(standing)
        order = scoring.order(standing, scores, rerank)
    else:
        weight = outcome.reranker.default_alpha if alpha is None else alpha
        scores = scoring.final_scores(standing, rerank, alpha=weight, fusion=fusion)
        # By the reranker's own scores: a calibration may give different ones the same probability.
        order = scoring.order(standing, scores, rerank)
        if outcome.calibration is not None:
            rerank = outcome.calibration.apply(rerank, outcome.reranker.scale)
            if weight >= 1.0:
                scores = scoring.final_scores(standing, rerank, alpha=weight, fusion=fusion)
            elif fusion == "linear":
                scores = [outcome.calibration.probability(score, "probability") for score in scores]
    if rerank is not None and threshold is not None:
        order = [i for i in order if (score := rerank[i]) is not None and score.probability >= threshold]
    if per_document is not None:
        order = list(_first_of_each(order, candidates, per_document))
    return [
        Hit(
            rank=rank,
            chunk=candidates[i].chunk,
            score=scores[i],
            first_stage=FirstStage(candidates[i].rank, candidates[i].score),
            rerank=None if rerank is None else rerank[i],
        )
        for rank, i in enumerate(order, 1)
    ]


def _first_of_each(order: Iterable[int], candidates: Sequence[Candidate], most: int) -> Iterator[int]:
    """The places without those of a document of which so many came before."""
    seen: Counter[str] = Counter()
    for i in order:
        document_id = candidates[i].chunk.document_id
        seen[document_id] += 1
        if seen[document_id] <= most:
            yield i


def complete_versions(candidates: Sequence[Candidate], store: Store, known: set[tuple[str, str]]) -> list[Candidate]:
    """Leaves out chunks of documents that are not all there yet, and of all but one version of a document.

    A document of many chunks is written in several steps, and two versions stand side by side while a changed one is
    written; a crash leaves both as they are. The ledger knows what is complete. It is asked about these alone: any
    other document was written in one step. ``known`` is what it said before: (document id, content hash) of long
    documents that are complete.

    Until an ingest of a changed file is at its end, what the file had before is still what its copies have: it answers
    as theirs.
    """
    hashes: dict[str, set[str]] = {}
    unsure = set()
    for candidate in candidates:
        chunk = candidate.chunk
        hashes.setdefault(chunk.document_id, set()).add(chunk.content_hash)
        if chunk.count > store.whole_chunks and (chunk.document_id, chunk.content_hash) not in known:
            unsure.add(chunk.document_id)
    unsure.update(id_ for id_, versions in hashes.items() if len(versions) > 1)
    keep = {}
    heirs: dict[tuple[str, str], Sequence[str]] = {}
    for id_, versions in by_document(store.versions(sorted(unsure)) if unsure else ()).items():
        best = answering(versions)
        if best.complete:
            keep[id_] = best.content_hash
            if len(known) < _KNOWN and best.count > store.whole_chunks:
                known.add((id_, best.content_hash))
        heirs.update(((id_, v.content_hash), v.copies) for v in versions if v != best and v.complete and v.copies)
    if heirs:
        own = {v.document_id for v in store.versions(sorted(set().union(*heirs.values()))) if v.complete}
        heirs = {version: [path for path in copies if path not in own] for version, copies in heirs.items()}

    def answers(chunk: Chunk) -> bool:
        version = chunk.document_id, chunk.content_hash
        return version[0] not in unsure or keep.get(version[0]) == version[1] or bool(heirs.get(version))

    def renamed(chunk: Chunk) -> Chunk:
        paths = heirs.get((chunk.document_id, chunk.content_hash))
        return as_copy(chunk, paths) if paths else chunk

    found = _once(candidate for candidate in candidates if answers(candidate.chunk))
    return [replace(candidate, chunk=renamed(candidate.chunk)) for candidate in found]


def _once(candidates: Iterable[Candidate]) -> Iterator[Candidate]:
    """Leaves out what is there a second time: until an ingest is at its end, equal files may have a document each."""
    shown: dict[str, str] = {}
    for candidate in candidates:
        chunk = candidate.chunk
        # Where id and source are the same, equal hashes mean equal files: that of any other document has its source.
        a_file = chunk.document_id == chunk.source
        if not a_file or shown.setdefault(chunk.content_hash, chunk.document_id) == chunk.document_id:
            yield candidate
