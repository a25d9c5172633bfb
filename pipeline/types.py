"""The values that travel through the pipeline: frozen, plain, without behaviour beyond their own form."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from numbers import Integral
from typing import Any, Literal

from pipeline.errors import DocumentError
from pipeline.plain import as_text, for_json, plain
from pipeline.text import title_of_path

SearchMode = Literal["hybrid", "dense", "sparse"]
HybridFusion = Literal["convex", "dbsf", "rrf"]
Quantization = Literal["none", "int8"]
StageFusion = Literal["linear", "rrf"]
ScoreScale = Literal["logit", "probability"]

#: Deepest metadata that is stored. Qdrant writes JSON of any depth and reads 128 levels back, some of them around it.
METADATA_LEVELS = 64

# Namespace of the chunk ids: any fixed UUID does, but it must never change.
_CHUNK_NAMESPACE = uuid.UUID("7b0c9a52-3f0e-5d0f-9a43-5f4c1f6f0c11")


def chunk_id(document_id: str, content_hash: str, index: int) -> str:
    """UUID5 of document id, document version and place.

    The version is part of it so that writing a changed document never overwrites the chunks of the old one: until all
    new chunks are stored, the old version is still complete.
    """
    name = f"{document_id}\0{content_hash}\0{index}"
    # File names may hold lone surrogates, which UTF-8 has no bytes for.
    return str(uuid.uuid5(_CHUNK_NAMESPACE, name.encode("utf-8", "backslashreplace").decode()))


@dataclass(frozen=True, slots=True)
class Document:
    """A text to be found again.

    ``id`` is the caller's, or the absolute path of the file. ``source`` is where the text came from (a path,
    an address) and defaults to the id. ``metadata`` holds JSON values and can be filtered on in queries; it is a copy
    of what was given, with plain values for those of other libraries (see :func:`pipeline.plain.plain`). What cannot be
    stored makes it a failure of the ingest.

    Raises:
        DocumentError: the id is empty, a field is of another type, or metadata cannot be read.
    """

    id: str
    text: str
    title: str = ""
    source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    markdown: bool = False
    """Whether ``text`` is Markdown, so that it is cut along its headings."""
    modified: str = ""
    """When the source was last changed, in ISO 8601. Stored as metadata, but a new time alone is no change."""
    page_starts: tuple[int, ...] = ()
    """Where each page or slide begins in ``text``: each chunk's metadata then has the ``page`` that it begins on."""
    find_language: bool = False
    """Whether the chunks' metadata shall have the ``language`` that the text is in, unless there is one already."""
    from_file: bool = False
    """Whether this is all of a file, whose path is id and source. Equal files are stored once, with all their paths."""

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise DocumentError(f"a document's id is a string that is not empty, not {self.id!r}")
        for name in ("text", "title", "source"):
            if not isinstance(getattr(self, name), str):
                raise DocumentError(f"document {self.id}: {name} is a string, not {type(getattr(self, name)).__name__}")
        if not isinstance(self.metadata, Mapping) or not all(isinstance(key, str) for key in self.metadata):
            raise DocumentError(f"document {self.id}: metadata is a mapping whose keys are strings")
        try:
            object.__setattr__(self, "metadata", plain(self.metadata, METADATA_LEVELS + 1))
        except Exception as error:  # whatever a key raises when it is asked for its text
            raise DocumentError(f"document {self.id}: its metadata cannot be read: {error!r}") from error
        if not all(isinstance(start, Integral) for start in self.page_starts):
            raise DocumentError(f"document {self.id}: page_starts are whole numbers")
        if not self.source:
            object.__setattr__(self, "source", self.id)

    def content_hash(self) -> str:
        """Hash (32 hex digits of BLAKE2b) of everything that is stored: equal hashes need no new embedding.

        Of a file it is that of the content alone: not of its path and name, nor of a title made of them.

        Raises:
            DocumentError: there is something among the metadata that cannot be stored.
        """
        source, title, metadata = self.source, self.title, dict(self.metadata)
        if self.from_file:
            names = (metadata.pop("file_name", ""), title_of_path(self.source))
            source, title = "", "" if title in names else title
        parts: list[Any] = [self.text, title, source, metadata, self.markdown]
        if self.page_starts:
            parts.append(self.page_starts)
        try:
            canonical = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=as_text)
        except TypeError as error:
            for key, value in metadata.items():
                _check_storable(self.id, key, value)
            raise DocumentError(f"{self.id}: its metadata cannot be stored: {error}") from error
        return hashlib.blake2b(canonical.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _check_storable(document_id: str, key: str, value: object) -> None:
    try:
        json.dumps(value, default=as_text)
    except TypeError as error:
        raise DocumentError(
            f"{document_id}: its metadata cannot be stored: {key!r} has {error}; what can be are texts, numbers, truth "
            "values, dates, UUIDs, paths, and lists and mappings of them"
        ) from error


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document: what is embedded, stored, recalled and reranked."""

    document_id: str
    content_hash: str
    """Of the whole document, so that chunks of different versions can be told apart."""
    index: int
    """Place in the document, from 0."""
    count: int
    """Number of chunks of this version of the document."""
    text: str
    title: str
    """Title of the document and headings above the chunk, joined by " > "."""
    source: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    copies: tuple[str, ...] = ()
    """Further sources of the document: paths of files with the same content."""

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source, *self.copies)

    @property
    def id(self) -> str:
        """See :func:`chunk_id`."""
        return chunk_id(self.document_id, self.content_hash, self.index)

    @property
    def full_text(self) -> str:
        """Title and text, as the embedder, BM25 and the reranker read them."""
        return f"{self.title}\n{self.text}" if self.title else self.text


@dataclass(frozen=True, slots=True)
class DocumentVersion:
    """One version of a document as the store holds it: the ledger of what was ingested."""

    document_id: str
    content_hash: str
    source: str
    present: int
    """Chunks that are in the store."""
    count: int
    """Chunks that this version consists of; more than ``present`` if a write was cut off."""
    copies: tuple[str, ...] = ()
    """Further sources that all chunks name: paths of files with the same content."""
    torn: bool = False
    """Whether some chunks name other copies than the rest, because a write was cut off."""

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source, *self.copies)

    @property
    def complete(self) -> bool:
        return self.present == self.count


@dataclass(frozen=True, slots=True)
class StoreCount:
    """Size of a collection."""

    documents: int
    chunks: int


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a collection was made with. Vectors of different fingerprints must not be mixed."""

    embedder: str
    """Name and revision of the embedding model."""
    dimension: int
    chunk_tokens: int
    chunk_overlap: int
    bm25: str
    """Tokenizer and parameters of the sparse vectors."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Fingerprint:
        return cls(
            embedder=str(value["embedder"]),
            dimension=int(value["dimension"]),
            chunk_tokens=int(value["chunk_tokens"]),
            chunk_overlap=int(value["chunk_overlap"]),
            bm25=str(value["bm25"]),
        )

    def differences(self, other: Fingerprint, *, ignore: frozenset[str] = frozenset()) -> list[tuple[str, Any, Any]]:
        """Fields that differ, as (field, own value, other's value)."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [(key, mine[key], theirs[key]) for key in mine if key not in ignore and mine[key] != theirs[key]]


@dataclass(frozen=True, slots=True)
class RerankScore:
    """A reranker's judgement of one text.

    ``raw`` is as the model or API gave it. ``probability`` is in [0, 1] and comparable with a threshold.
    """

    raw: float
    probability: float
    window: tuple[int, int] | None = None
    """Which part of the chunk's text, in characters, this is the score of; None for the whole."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A chunk that the first stage recalled. ``rank`` counts from 1; ``score`` is the engine's, unscaled."""

    chunk: Chunk
    score: float
    rank: int


@dataclass(frozen=True, slots=True)
class FirstStage:
    """Where the first stage had put a hit."""

    rank: int
    score: float


@dataclass(frozen=True, slots=True)
class Hit:
    """One result, with all that is needed to see why it is there."""

    rank: int
    chunk: Chunk
    score: float
    """Final score in [0, 1]: see :func:`pipeline.scoring.final_scores`."""
    first_stage: FirstStage
    rerank: RerankScore | None
    """None where no reranker ran, time ran out before it came to this one, or a cascade left this one out."""

    @property
    def id(self) -> str:
        """The chunk's, as in ``rag query --json``."""
        return self.chunk.id

    @property
    def title(self) -> str:
        return self.chunk.title

    @property
    def text(self) -> str:
        return self.chunk.text

    @property
    def source(self) -> str:
        return self.chunk.source

    @property
    def sources(self) -> tuple[str, ...]:
        """The source, and the paths of files with the same content."""
        return self.chunk.sources

    @property
    def document_id(self) -> str:
        return self.chunk.document_id

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.chunk.metadata

    def to_dict(self, *, exact: bool = False) -> dict[str, Any]:
        """The hit as in the JSON output of ``rag query``; see :meth:`QueryResult.to_dict`."""
        rerank = None
        if self.rerank is not None:
            window = self.rerank.window
            rerank = {
                "probability": self.rerank.probability,
                "raw": self.rerank.raw,
                "window": None if window is None else list(window),
            }
        shown = {
            "rank": self.rank,
            "id": self.chunk.id,
            "document_id": self.document_id,
            "title": self.chunk.title,
            "text": self.text,
            "source": self.source,
            "copies": list(self.chunk.copies),
            "score": self.score,
            "rerank": rerank,
            "first_stage": {"rank": self.first_stage.rank, "score": self.first_stage.score},
            "metadata": dict(self.metadata),
        }
        return shown if exact else for_json(shown)


@dataclass(frozen=True, slots=True)
class QueryResult:
    """The answer to one query."""

    query: str
    hits: list[Hit]
    reranker: str
    """Name of the reranker that answered."""
    candidates: int
    """How many chunks the first stage recalled."""
    timings_ms: Mapping[str, float]
    """Milliseconds for "embed", "search", "rerank" and "total"."""
    reranked: int = 0
    """How many of the candidates the reranker scored: fewer than all after a cascade, or where time ran out."""
    degraded: bool = False
    """True where not the reranker that was asked for answered."""
    warnings: list[str] = field(default_factory=list)

    def to_dict(self, *, exact: bool = False) -> dict[str, Any]:
        """The result as ``rag query --json`` prints it, for any writer of JSON.

        NaN and infinities, which metadata may hold, are None. Lone surrogates, as of file names that are no UTF-8, are
        U+FFFD, unless it is to be ``exact``: JSON can name them by escapes alone, which the commands write.
        """
        shown = {
            "query": self.query,
            "reranker": self.reranker,
            "degraded": self.degraded,
            "warnings": list(self.warnings),
            "hits": [hit.to_dict(exact=True) for hit in self.hits],
            "candidates": self.candidates,
            "reranked": self.reranked,
            "timings_ms": {name: round(value, 3) for name, value in self.timings_ms.items()},
        }
        return shown if exact else for_json(shown)


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document as the collection holds it: of several versions the one that queries answer with."""

    id: str
    content_hash: str
    source: str
    metadata: Mapping[str, Any]
    """What all of its chunks have alike."""
    chunks: tuple[Chunk, ...]
    """In the order of the text; neighbours may share some of it."""
    count: int
    """Chunks that this version consists of; more than there are in ``chunks`` if its write was cut off."""
    copies: tuple[str, ...] = ()
    """Further sources: paths of files with the same content."""

    @property
    def complete(self) -> bool:
        return len(self.chunks) == self.count


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """What the collection knows of one chunk, without its text."""

    point_id: str
    """Under which it is stored."""
    document_id: str
    content_hash: str
    index: int
    """Place in the document; -1 for a point that is no chunk of this program's."""
    count: int
    """Chunks that the version consists of."""
    source: str
    copies: tuple[str, ...] = ()

    @property
    def chunk_id(self) -> str:
        """Under which it should be stored."""
        return chunk_id(self.document_id, self.content_hash, self.index)


GenerationState = Literal["current", "kept", "leftover"]


@dataclass(frozen=True, slots=True)
class Generation:
    """One of the collections that stand under one name.

    ``current``: in use. ``kept``: in use before, and what a rollback goes back to. ``leftover``: half-built, or kept
    no longer. ``fingerprint`` is None where not even that was written. ``builder`` says who is building it now.
    ``rolled_back``: a rollback left it, so it may hold what is nowhere else.
    """

    name: str
    state: GenerationState
    fingerprint: Fingerprint | None
    builder: str | None = None
    rolled_back: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As ``rag status --json`` prints it."""
        return asdict(self)
