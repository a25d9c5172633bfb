"""A collection's chunks counted by document and version: what it says of itself."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.types import DocumentVersion, LedgerEntry


@dataclass(slots=True)
class _Tally:
    """Chunks of one version, counted: a bit for each place in the document."""

    count: int
    sources: list[str]
    placed: int = 0
    misplaced: list[tuple[str, int]] = field(default_factory=list)
    torn: bool = False


class Ledger:
    """The collection's chunks, counted by document and version. Memory grows with the versions, not the chunks."""

    def __init__(self, entries: Iterable[LedgerEntry]) -> None:
        self.chunks = 0
        self.foreign: list[str] = []
        self.duplicates: dict[str, DocumentVersion] = {}
        """Point id of each chunk that is there under its own id as well -> its version."""
        self.documents: dict[str, list[DocumentVersion]] = {}
        tallies: dict[str, dict[str, _Tally]] = {}
        for entry in entries:
            self.chunks += 1
            if entry.index < 0:
                self.foreign.append(entry.point_id)
                continue
            versions = tallies.setdefault(entry.document_id, {})
            tally = versions.get(entry.content_hash)
            if tally is None:
                sources = [sys.intern(source) for source in (entry.source, *entry.copies)]
                tally = versions[entry.content_hash] = _Tally(entry.count, sources)
            elif tally.sources[1:] != list(entry.copies):
                tally.torn = True
                tally.sources = [source for source in tally.sources if source in (entry.source, *entry.copies)]
            if entry.point_id == entry.chunk_id:
                tally.placed |= 1 << entry.index
            else:
                tally.misplaced.append((entry.point_id, entry.index))
        for document_id, versions in tallies.items():
            self.documents[document_id] = [self._version(document_id, *item) for item in versions.items()]
        self.files: dict[str, list[DocumentVersion]] = {}
        """Path of a copy -> versions that name it."""
        for versions_ in self.documents.values():
            for version in versions_:
                for path in version.copies:
                    self.files.setdefault(path, []).append(version)

    def _version(self, document_id: str, content_hash: str, tally: _Tally) -> DocumentVersion:
        places, doubled = tally.placed, []
        for point_id, index in sorted(tally.misplaced):
            if places >> index & 1:
                doubled.append(point_id)
            places |= 1 << index
        source, *copies = tally.sources
        version = DocumentVersion(
            document_id, content_hash, source, places.bit_count(), tally.count, tuple(copies), tally.torn
        )
        self.duplicates.update(dict.fromkeys(doubled, version))
        return version

    def named(self, document_id: str) -> list[DocumentVersion]:
        """Versions of the document with this id, and those of which the file of this path is a copy."""
        return [*self.documents.get(document_id, ()), *self.files.get(document_id, ())]

    def undecided(self) -> dict[str, list[DocumentVersion]]:
        """Those of which not exactly one version is complete: only their sources can tell what is right."""
        found = {id_: versions for id_, versions in self.documents.items() if _complete(versions) != 1}
        for path in self.files:
            if _complete(self.named(path)) != 1:
                found[path] = self.named(path)
        return found


def _complete(versions: Iterable[DocumentVersion]) -> int:
    return sum(version.complete for version in versions)
