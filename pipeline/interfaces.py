"""The three parts that can be exchanged: Embedder, Store and Reranker.

An implementation takes plain arguments, never reads settings or the environment, imports no other
implementation, may be called from many threads at once, and raises only errors of :mod:`pipeline.errors`. What is
written as a property here may be a plain attribute there.
``pipeline/build.py`` is the one place that knows all implementations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from pipeline.types import (
    Candidate,
    Chunk,
    DocumentVersion,
    Fingerprint,
    Generation,
    HybridFusion,
    LedgerEntry,
    RerankScore,
    ScoreScale,
    SearchMode,
    StoreCount,
)
from pipeline.where import Where

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer


class Embedder(Protocol):
    """Turns texts into unit-length vectors. A query and a document are different inputs.

    One that reads queries for a reranker, too, has ``forget_queries()``, so that searches without it can be measured.
    """

    @property
    def name(self) -> str:
        """Model and revision; goes into the collection's fingerprint."""
        ...

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        ...

    @property
    def max_tokens(self) -> int:
        """Longest input in tokens, special tokens and prefix included; longer ones are cut by the model."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """Counts a chunk's tokens. Where a model's own is out of reach, the closest that is at hand."""
        ...

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of shape (len(texts), dimension), each of length 1, in input order."""
        ...

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """Vector of shape (dimension,) and length 1."""
        ...


class Reranker(Protocol):
    """Scores texts against a query. It never sorts, cuts or filters: that is done once, in the core.

    A reranker may have more attributes, which are used where they are there:

    - ``identity`` (str or None): model and revision whose scores these are. Only with it can scores be cached and
      calibrated, because both are wrong for another model.
    - ``variant`` (str): what else changes its scores, such as how much of a text it reads. Scores are cached for each.
    - ``max_tokens`` (int or None): longest pair of query and text that it reads; longer texts then come as windows.
      ``tokenizer`` (tokenizers.Tokenizer or None) counts them, otherwise the embedder's does.
    - ``apart`` (True): it reads query and text apart, so that neither takes the other's room in ``max_tokens``.
    - ``tokens_read(texts)`` (list of int or None): how many tokens it made of each text that it has read before, where
      it keeps what it has read and such a text costs next to nothing; None for others. It says how many texts fit into
      the time that is left, and that a text which was not cut need not be counted again.
    - ``load()``: loads its model. A pipeline calls it in a thread at its first query, beside the first stage; what it
      raises is left for ``score`` to raise again.
    - ``keeps_deadline`` (True): it obeys :mod:`pipeline.deadline` by itself, as those that wait for a network must.
      Any other is given only as many texts as it is expected to score in time.
    """

    @property
    def name(self) -> str:
        """As in results and messages."""
        ...

    @property
    def scale(self) -> ScoreScale:
        """Whether ``raw`` is a logit (the sigmoid makes it a probability) or already a probability."""
        ...

    @property
    def default_alpha(self) -> float:
        """Weight of this reranker against the first stage unless the user sets one; 1.0 trusts it alone."""
        ...

    def score(self, query: str, texts: Sequence[str]) -> list[RerankScore]:
        """One score for each text, in input order; an empty list for no texts.

        Raises:
            RerankerError: the model or endpoint failed; says whether a retry may help. That, and Python's own
                TimeoutError and ConnectionError, is what a fallback answers for; anything else is taken for a mistake
                in the program and comes out as it is.
        """
        ...


class Store(Protocol):
    """Holds chunks with their vectors, finds them, and is the ledger of what was ingested."""

    name: str
    """For messages: where the collection is."""
    bm25: str
    """Tokenizer and parameters of the sparse vectors; goes into the collection's fingerprint."""
    whole_chunks: int
    """A document of at most so many chunks is written in one step: whatever happens, all of it is there or nothing."""

    def fingerprint(self) -> Fingerprint | None:
        """What the collection was made with; None if it does not exist yet."""
        ...

    def ensure_ready(self, fingerprint: Fingerprint) -> None:
        """Creates the collection and its payload indexes if missing.

        Does not compare fingerprints: that is the core's work.
        """
        ...

    def upsert(self, chunks: Sequence[Chunk], vectors: NDArray[np.float32]) -> None:
        """Writes chunks with their dense vectors (shape (len(chunks), dimension)); durable on return.

        Chunks of one document stand together.
        """
        ...

    def delete_documents(self, document_ids: Sequence[str]) -> int:
        """Removes all chunks of these documents; returns how many chunks there were."""
        ...

    def delete_versions(self, stale: Mapping[str, Set[str]]) -> int:
        """For each document id, removes the chunks that have one of the content hashes given; returns how many."""
        ...

    def versions(self, document_ids: Sequence[str] | None = None) -> Iterator[DocumentVersion]:
        """Versions of these documents, or of all. A document has more than one only after a cut-off write."""
        ...

    def related(self, names: Sequence[str], content_hashes: Sequence[str]) -> Iterator[DocumentVersion]:
        """Versions that have one of these names as id or source, or one of these contents; a few hundred at most."""
        ...

    def passing(self, where: Where) -> Iterator[DocumentVersion]:
        """Versions of which a chunk passes ``where`` (see :meth:`search`); ``present`` counts the chunks that do."""
        ...

    def delete_chunks(self, point_ids: Iterable[str]) -> int:
        """Removes the chunks that are stored under these ids; returns how many ids there were."""
        ...

    def ledger(self) -> Iterator[LedgerEntry]:
        """An entry for each stored chunk, in no particular order, with the id that it is stored under."""
        ...

    def chunks(self, document_ids: Sequence[str] | None = None) -> Iterator[Chunk]:
        """The stored chunks of these documents, or of all, in no particular order."""
        ...

    def chunks_with_vectors(
        self, document_ids: Sequence[str] | None = None
    ) -> Iterator[tuple[Chunk, NDArray[np.float32]]]:
        """As :meth:`chunks`, each with its dense vector, of shape (dimension,)."""
        ...

    def search(
        self,
        text: str,
        vector: NDArray[np.float32] | None,
        *,
        limit: int,
        mode: SearchMode = "hybrid",
        fusion: HybridFusion = "convex",
        where: Where | None = None,
        exact: bool = False,
    ) -> list[Candidate]:
        """The best ``limit`` chunks, best first, ranks from 1; an empty list if there is no collection.

        ``vector`` is the query's; only ``sparse`` does without. ``where`` maps metadata keys ("a.b" reaches into
        objects; "source" (any of them) and "document_id" are the chunk's own) to a value (equality), a list (any of) or
        {"gt"|"gte"|"lt"|"lte": bound} with numbers or ISO dates, {"not": any of these}, which what lacks the key
        passes, too, {"all": [values]} or {"exists": bool}; all must hold. A key with a dot stands in quotes. Of a list
        of such mappings one must hold. ``exact`` searches without the HNSW index.
        """
        ...

    def count(self) -> StoreCount:
        """Documents and chunks in the collection."""
        ...

    def digest(self) -> str:
        """Of documents' ids and content hashes: the same as long as nobody writes or removes a document."""
        ...

    def optimize(self, progress: Callable[[str], None] | None = None) -> None:
        """Builds what index is due; may take minutes. ``progress`` is told what is being done."""
        ...

    def close(self) -> None:
        """Releases files and connections; closing twice is fine."""
        ...


class Generations(Protocol):
    """The collections under one name, of which one is in use. A store that has them gives them by ``generations()``."""

    def all(self) -> list[Generation]:
        """What is there, in the order in which it was made."""
        ...

    def current(self) -> str:
        """Name of the one in use, as it is at this moment."""
        ...

    def next_name(self) -> str:
        """A name for one more."""
        ...

    def open(self, name: str) -> Store:
        """The store of one of them, or of one to be made; to be closed. It stays with it, whatever is in use."""
        ...

    def building(self, name: str) -> AbstractContextManager[None]:
        """While it lasts :meth:`remove` leaves the collection alone, and nobody else builds it.

        Raises:
            StoreLockedError: somebody else does.
        """
        ...

    def frozen(self) -> AbstractContextManager[None]:
        """Keeps other writers off the collection in use, as far as the store can; queries go on."""
        ...

    def switch(self, to: str, *, back: bool = False) -> None:
        """Uses this one from now on, in one step, and keeps the one before. The store itself goes along.

        ``back``: as a rollback, which is remembered of the one that is kept then.

        Other stores that are open stay with the one before and answer from it, but refuse to write.

        Raises:
            StoreError: it is in use already, and what is kept stays what it was.
        """
        ...

    def remove(self, name: str, *, dry_run: bool = False) -> None:
        """Deletes one that is not in use; with ``dry_run`` only looks whether that could be done.

        Raises:
            StoreLockedError: somebody has it open or builds it.
            StoreError: it is in use.
        """
        ...
