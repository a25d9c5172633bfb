"""What a command or a method of the pipeline did or found: frozen, plain, and a ``to_dict`` as ``--json`` prints it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipeline.plain import for_json
from pipeline.types import Fingerprint, Generation

ProblemKind = Literal[
    "missing", "orphaned", "stale", "duplicate", "foreign", "fingerprint", "changed", "new", "gone", "unreadable"
]


@dataclass(frozen=True, slots=True)
class Failure:
    """A document that could not be ingested, and why."""

    source: str
    error: str


@dataclass(frozen=True, slots=True)
class NoText(Failure):
    """A file that holds no text by its nature. Met in a folder it is passed over; asked for by name it is a failure."""

    certain: bool = True
    """Whether what is stored of it may go: not if it could merely not be read as text, which damage does, too, nor if
    it had a document a line, as who writes such a file empties it first."""


@dataclass(frozen=True, slots=True)
class IngestProfile:
    """How the time of an ingest was spent, in seconds. The stages work side by side, so their sum may be more."""

    seconds: float
    """From the start until the last chunk was written."""
    reading: float
    chunking: float
    """With the comparison of documents with the ledger."""
    embedding: float
    writing: float
    indexing: float
    """After all that."""
    peak_mb: float | None
    """Most memory that the process ever had; None where the system does not tell."""

    @property
    def embedder_busy(self) -> float:
        """Share of the time in which the embedder was at work."""
        return self.embedding / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The profile as ``rag ingest --profile --json`` prints it."""
        rounded = {name: value if value is None else round(value, 3) for name, value in asdict(self).items()}
        return rounded | {"embedder_busy": round(self.embedder_busy, 3)}


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What an ingest did, or with ``dry_run`` would do."""

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    deleted: int = 0
    chunks_written: int = 0
    chunks_deleted: int = 0
    failures: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    dry_run: bool = False
    profile: IngestProfile | None = None
    skipped: list[NoText] = field(default_factory=list)
    """Files in the folders that hold no text, such as pictures and empty ones, and what each is."""

    def to_dict(self, *, exact: bool = False) -> dict[str, Any]:
        """The report as ``rag ingest --json`` prints it; see :meth:`QueryResult.to_dict`."""
        shown = {
            "documents": {
                "new": self.new,
                "changed": self.changed,
                "unchanged": self.unchanged,
                "deleted": self.deleted,
                "failed": len(self.failures),
            },
            "chunks": {"written": self.chunks_written, "deleted": self.chunks_deleted},
            "failures": [asdict(failure) for failure in self.failures],
            "skipped": [{"source": file.source, "error": file.error} for file in self.skipped],
            "warnings": list(self.warnings),
            "seconds": round(self.seconds, 3),
            "dry_run": self.dry_run,
        }
        return shown if exact else for_json(shown)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a collection that should not be so.

    ``missing``: no version of the document is complete. ``orphaned``: chunks of an unfinished version beside a complete
    one. ``stale``: more than one complete version. ``duplicate``: a chunk that is stored twice. ``foreign``: a point
    that this program did not write. ``fingerprint``: the collection was made differently. Against the sources:
    ``changed``, ``new`` (not in the collection), ``gone``, ``unreadable``.
    """

    kind: ProblemKind
    document_id: str
    source: str
    detail: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verification found."""

    documents: int
    chunks: int
    problems: list[Problem]
    """What is wrong now: after a repair, what it could not mend."""
    repaired: list[Problem] = field(default_factory=list)
    """What was wrong before the repair and is not any more."""
    seconds: float = 0.0
    exists: bool = True
    """Whether there is a collection; one that is not there has no problems."""

    @property
    def clean(self) -> bool:
        return not self.problems

    def to_dict(self, *, exact: bool = False) -> dict[str, Any]:
        """The report as ``rag verify --json`` prints it; see :meth:`QueryResult.to_dict`."""
        shown = {
            "clean": self.clean,
            "exists": self.exists,
            "documents": self.documents,
            "chunks": self.chunks,
            "problems": [asdict(problem) for problem in self.problems],
            "repaired": [asdict(problem) for problem in self.repaired],
            "seconds": round(self.seconds, 3),
        }
        return shown if exact else for_json(shown)


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote."""

    file: str
    documents: int
    chunks: int
    vectors: bool
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self, *, exact: bool = False) -> dict[str, Any]:
        """The report as ``rag export --json`` prints it; see :meth:`QueryResult.to_dict`."""
        shown = asdict(self) | {"seconds": round(self.seconds, 3)}
        return shown if exact else for_json(shown)


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did."""

    file: str
    written: int
    """Documents."""
    unchanged: int
    """Documents that were in the collection already."""
    chunks_written: int
    chunks_deleted: int
    """Chunks of other versions of these documents."""
    embedded: bool
    """Whether the vectors were made here rather than taken from the file."""
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self, *, exact: bool = False) -> dict[str, Any]:
        """The report as ``rag import --json`` prints it; see :meth:`QueryResult.to_dict`."""
        shown = {
            "file": self.file,
            "documents": {"written": self.written, "unchanged": self.unchanged},
            "chunks": {"written": self.chunks_written, "deleted": self.chunks_deleted},
            "embedded": self.embedded,
            "warnings": list(self.warnings),
            "seconds": round(self.seconds, 3),
        }
        return shown if exact else for_json(shown)


@dataclass(frozen=True, slots=True)
class ReindexReport:
    """What a reindex did."""

    collection: str
    """Physical name of the collection in use now."""
    kept: str | None
    """That of the one before; None if there was nothing to do."""
    documents: int
    """Documents written; those of an earlier run that was cut off are not counted again."""
    chunks: int
    recut: int
    """Documents of these whose text was put together from their chunks and cut anew."""
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self, *, exact: bool = False) -> dict[str, Any]:
        """The report as ``rag reindex --json`` prints it, beside the settings; see :meth:`QueryResult.to_dict`."""
        shown = asdict(self) | {"seconds": round(self.seconds, 3)}
        return shown if exact else for_json(shown)


@dataclass(frozen=True, slots=True)
class RollbackReport:
    """What a rollback did."""

    collection: str
    kept: str
    fingerprint: Fingerprint
    """That of the collection in use now: the settings must fit it."""
    behind: int
    """Documents that changed, came or went since the switch: they are as they were before it."""

    def to_dict(self) -> dict[str, Any]:
        """The report as ``rag rollback --json`` prints it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class GcReport:
    """Collections that were removed, or with ``dry_run`` would be, and those that could not be, with the reason."""

    removed: list[Generation]
    failures: list[Failure]
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The report as ``rag gc --json`` prints it."""
        return asdict(self)
