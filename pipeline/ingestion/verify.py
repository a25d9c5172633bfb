"""Whether a collection holds what it should: its ledger against its chunks, and against the sources."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.embedding import embed_documents
from pipeline.ingestion.changes import answering, any_within, by_document, is_within
from pipeline.ingestion.copies import Embed, Sharing, chunk_ids
from pipeline.ingestion.ledger import Ledger
from pipeline.ingestion.loaders import MAX_BYTES, is_still_there, load
from pipeline.ingestion.reading import hash_of, passed_over, read
from pipeline.ingestion.run import IngestRun, Progress
from pipeline.interfaces import Store
from pipeline.reports import Failure, NoText, Problem, ProblemKind, VerifyReport
from pipeline.types import Document, DocumentVersion, LedgerEntry

_ORDER: tuple[ProblemKind, ...] = (
    "foreign",
    "missing",
    "orphaned",
    "stale",
    "duplicate",
    "unreadable",
    "changed",
    "new",
    "gone",
)


@dataclass
class Sources:
    """What the sources that were given hold now."""

    max_bytes: int
    held: Callable[[str], bool]
    """Whether documents are known of a path, though it is not there any more."""
    ignored: Sequence[str] = ()
    roots: list[str] = field(default_factory=list)
    """Absolute paths that were given: what has its source there and was not met is gone."""
    hashes: dict[str, str] = field(default_factory=dict)
    """Document id -> content hash; of several documents with one id the last one counts, as in an ingest."""
    places: dict[str, str] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    skipped: dict[str, NoText] = field(default_factory=dict)
    """Files that hold no text."""

    def read(self, items: Iterable[Document | str | Path], tell: Callable[[Progress], None]) -> Iterator[Document]:
        """The documents of the items, each noted on its way."""
        for batch in read(items, self.roots, self.max_bytes, held=self.held, ignored=self.ignored):
            tell(Progress(batch.files_done, batch.files_total, documents=len(self.hashes), chunks=0))
            self.skipped.update((file.source, file) for file in batch.skipped)
            for item in batch.items:
                content_hash = item if isinstance(item, Failure) else hash_of(item)
                if isinstance(content_hash, Failure):
                    self.failures.append(content_hash)
                elif isinstance(item, Document):
                    self.hashes[item.id] = content_hash
                    self.places[item.id] = sys.intern(item.source)
                    yield item


def verify(
    store: Store,
    items: Iterable[Document | str | Path],
    differences: Sequence[tuple[str, Any, Any]],
    *,
    mend: IngestRun | None,
    max_bytes: int = MAX_BYTES,
    ignored: Sequence[str] = (),
    progress: Callable[[Progress], None] | None = None,
) -> VerifyReport:
    """Compares, and with ``mend`` repairs what can be without losing anything.

    A version beside the only complete one is removed. A document of which no version is complete, or more than one is,
    is ingested again if it is among the items or its source is a file that still holds it; else it stays as it is.
    ``differences`` are those of the collection's fingerprint from the one asked for, as (field, stored, asked for).
    """
    start = time.perf_counter()

    def tell(step: Progress) -> None:
        if progress is not None:
            progress(step)

    def say(message: str) -> None:
        tell(Progress(0, 0, 0, 0, message))

    ledger = Ledger(_said(store.ledger(), lambda: say("reading the ledger")))
    sources = Sources(
        max_bytes,
        held=lambda source: any_within(chain.from_iterable(ledger.documents.values()), source),
        ignored=ignored,
    )
    before: list[Problem] = []
    if mend is None:
        for _ in sources.read(items, tell):
            pass
    else:
        mend.execute(_to_mend(items, sources, ledger.undecided(), tell))
        before = find_problems(ledger, sources)
        say("removing what is left over")
        if _remove_leftovers(store, partial(embed_documents, mend.embedder)):
            store.optimize(say)
        say("reading the ledger again")
        ledger = Ledger(store.ledger())
    now = find_problems(ledger, sources)
    still = {(problem.kind, problem.document_id) for problem in now}
    if differences:
        listed = "; ".join(f"{name}: stored {stored!r}, asked for {asked!r}" for name, stored, asked in differences)
        detail = f"made with other settings ({listed}): nothing can be repaired with these"
        now.insert(0, Problem("fingerprint", "", "", detail))
    return VerifyReport(
        documents=len(ledger.documents),
        chunks=ledger.chunks,
        problems=now,
        repaired=[problem for problem in before if (problem.kind, problem.document_id) not in still],
        seconds=time.perf_counter() - start,
    )


def _said(entries: Iterable[LedgerEntry], say: Callable[[], None]) -> Iterator[LedgerEntry]:
    """Says so where there is something: a store that is missing or in use by others is not being read."""
    for place, entry in enumerate(entries):
        if not place:
            say()
        yield entry


def find_problems(ledger: Ledger, sources: Sources) -> list[Problem]:
    """All that is wrong with the chunks or differs from the sources, by kind, source and document."""
    found = [*_in_ledger(ledger, sources.hashes), *_in_sources(ledger, sources)]
    return sorted(found, key=lambda problem: (_ORDER.index(problem.kind), problem.source, problem.document_id))


def _in_ledger(ledger: Ledger, current: Mapping[str, str]) -> Iterator[Problem]:
    for point_id in ledger.foreign:
        yield Problem("foreign", point_id, "", "not written by this program, which passes it over")
    for point_id, version in ledger.duplicates.items():
        yield Problem("duplicate", version.document_id, version.source, f"a chunk is stored twice, once as {point_id}")
    held: dict[str, str] = {}
    for document_id, versions in ledger.documents.items():
        complete = [version for version in versions if version.complete]
        if not complete:
            best = answering(versions)
            detail = f"{best.present} of {best.count} chunks are there: ingest it again"
            yield Problem("missing", document_id, best.source, detail)
            continue
        known = [version for version in complete if version.content_hash == current.get(document_id)]
        kept = known[0] if known else answering(versions)
        first = held.setdefault(kept.content_hash, document_id)
        if first != document_id == kept.source:  # of a file, the content hash is of nothing but the content
            yield Problem("duplicate", document_id, kept.source, f"the same as {first}: ingest either again")
        if kept.torn:
            yield Problem("stale", document_id, kept.source, "its chunks name different files: ingest it again")
        for version in versions:
            if version is kept:
                continue
            if not version.complete:
                detail = f"{version.present} of {version.count} chunks of a version that is not the one that answers"
                yield Problem("orphaned", document_id, version.source, detail)
            elif known:
                yield Problem("stale", document_id, version.source, "an older version beside the current one")
            else:
                detail = "two complete versions, and only the source can tell which is current: ingest it again"
                yield Problem("stale", document_id, version.source, detail)
    for path in ledger.files:
        if len({version.content_hash for version in ledger.named(path) if version.complete}) > 1:
            yield Problem("stale", path, path, "a copy of what it is not, or not only: ingest it again")


def _in_sources(ledger: Ledger, sources: Sources) -> Iterator[Problem]:
    for failure in sources.failures:
        yield Problem("unreadable", "", failure.source, failure.error)
    for document_id, content_hash in sources.hashes.items():
        versions = ledger.named(document_id)
        if not versions:
            yield Problem("new", document_id, sources.places[document_id], "not in the collection: ingest it")
        elif any(version.complete for version in versions) and not any(
            version.complete and version.content_hash == content_hash for version in versions
        ):
            yield Problem("changed", document_id, sources.places[document_id], "changed since: ingest it again")
    roots = set(sources.roots)
    unreadable = {*(failure.source for failure in sources.failures), *passed_over(sources.ignored, sources.roots)}
    for document_id, versions in ledger.documents.items():
        version = answering(versions)
        for source in version.sources:
            if (source if version.copies else document_id) in sources.hashes or is_within(source, unreadable):
                continue
            empty = sources.skipped.get(source)
            if empty is not None and not empty.certain:
                yield Problem("unreadable", document_id, source, empty.error)
            elif is_within(source, roots) and (empty is not None or not is_still_there(source)):
                yield Problem("gone", document_id, source, "not in its source any more: ingest with --prune")


def _to_mend(
    items: Iterable[Document | str | Path],
    sources: Sources,
    undecided: Mapping[str, Sequence[DocumentVersion]],
    tell: Callable[[Progress], None],
) -> Iterator[Document]:
    """Those of the undecided documents that are at hand: among the items, or else in the files that they came from."""
    met = set()
    for document in sources.read(items, tell):
        if document.id in undecided:
            met.add(document.id)
            yield document
    left = {document_id for document_id in undecided if document_id not in met}
    files = {source for document_id in left for version in undecided[document_id] for source in version.sources}
    for file in sorted(files):
        # A document that was given in Python may have any words for its source.
        if Path(file).is_absolute() and Path(file).is_file():
            for thing in load(Path(file), sources.max_bytes):
                if isinstance(thing, Document) and thing.id in left:
                    yield thing


def _remove_leftovers(store: Store, embed: Embed) -> int:
    """Removes what stands beside the only complete version of a document, and what is stored a second time."""
    ledger = Ledger(store.ledger())
    stale: dict[str, set[str]] = {}
    doomed: list[str] = [*ledger.duplicates]
    held: set[str] = set()
    sharing = Sharing()
    for document_id, versions in ledger.documents.items():
        complete = [version for version in versions if version.complete]
        if len(complete) == 1 and len(versions) > 1:
            stale[document_id] = {version.content_hash for version in versions} - {complete[0].content_hash}
        if not complete and sum(version.complete for version in ledger.files.get(document_id, ())) == 1:
            doomed += chunk_ids(versions)  # it is a copy of what another document has
        for version in complete:
            if document_id == version.source:
                if version.torn or version.content_hash in held:
                    sharing.note("", [version.content_hash])
                held.add(version.content_hash)
    _, deleted = sharing.settle(store, embed)
    # What is not as it was is being written by somebody, and may be the version that stays.
    now = by_document(store.versions(list(stale))) if stale else {}
    for document_id in stale:
        versions = ledger.documents[document_id]
        if _presence(now.get(document_id, [])) == _presence(versions):
            doomed += chunk_ids(version for version in versions if version.content_hash in stale[document_id])
    return deleted + store.delete_chunks(doomed)


def _presence(versions: Iterable[DocumentVersion]) -> set[tuple[str, int]]:
    return {(version.content_hash, version.present) for version in versions}
