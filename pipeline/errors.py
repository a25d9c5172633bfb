"""Every error this package raises on purpose.

    RagError
    ├── SettingsError          a setting, argument or file path is wrong: the operator must change it
    ├── MissingExtraError      an optional package is not installed
    ├── DocumentError          one document could not be read
    │   └── NoTextError            it is no document: a picture, say, or an empty file
    ├── StoreError             Qdrant, embedded or server, refused or failed
    │   ├── StoreLockedError       another process holds the embedded store
    │   ├── StoreUnavailableError  a Qdrant server that cannot be reached or fails, perhaps only for now
    │   └── FingerprintError       the collection was made with another model or other chunking
    ├── ForkedError            it was made before the process was forked, and used in the child
    ├── EmbedderError          an embedding model or endpoint failed
    └── RerankerError          a reranking model or endpoint failed (provider, status, retryable)

A message says what happened, to what, and what to do next. The library's own exception is chained as
``__cause__``. API keys never appear in a message.
"""

from __future__ import annotations

from typing import Any


class RagError(Exception):
    """Base of all errors of this package. With its attributes it survives ``pickle`` and ``copy``."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Without __init__, whose keywords are not in args: a worker's error that its parent cannot make again would
        # hang a multiprocessing.Pool and break a ProcessPoolExecutor.
        return _made_again, (type(self), self.args), self.__dict__


class SettingsError(RagError):
    """A setting or argument is wrong; repeating the call cannot help."""


class MissingExtraError(RagError):
    """An optional dependency is missing; the message names the extra that brings it."""


class DocumentError(RagError):
    """One document could not be read; the others are not concerned."""


class NoTextError(DocumentError):
    """A file holds no text by its nature, as a picture or an empty file does; says what it is."""


class StoreError(RagError):
    """The vector store refused an operation or could not be reached."""


class StoreLockedError(StoreError):
    """The embedded store is held by another process, which the message names."""


class StoreUnavailableError(StoreError):
    """A Qdrant server did not answer, or answered that it cannot now; the same request may succeed later.

    ``retry_after``: seconds that it asks to wait before that.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class FingerprintError(StoreError):
    """The collection was made with another embedder, other chunking or another BM25 than asked for now."""


class ForkedError(RagError):
    """Something was used in a forked child that belongs to its parent; what the child makes itself works."""


class EmbedderError(RagError):
    """An embedding model could not be loaded or did not answer as it should."""


class RerankerError(RagError):
    """A reranker could not be loaded, reached or understood.

    ``provider`` is the reranker's name, ``status`` the HTTP status if there was one, and ``retryable`` says
    whether the same call may succeed later (rate limits, server faults, time-outs) or not. ``operator`` is True where
    somebody must change a setting (key, model, address) first: then no fallback is asked.
    """

    def __init__(
        self,
        message: str,
        *,
        provider: str,
        status: int | None = None,
        retryable: bool = False,
        operator: bool = False,
    ) -> None:
        super().__init__(message)
        self.provider = provider
        self.status = status
        self.retryable = retryable
        self.operator = operator


def _made_again(kind: type[RagError], arguments: tuple[Any, ...]) -> RagError:
    return kind.__new__(kind, *arguments)
