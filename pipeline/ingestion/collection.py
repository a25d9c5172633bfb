"""A collection seen as documents: what is there, one of them, and the removal of some."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from pipeline.ingestion.changes import answering, by_document
from pipeline.interfaces import Store
from pipeline.types import Chunk, DocumentVersion, StoredDocument

_BATCH = 1_000


def documents(store: Store) -> Iterator[DocumentVersion]:
    """The version of each document that queries answer with."""
    for versions in by_document(store.versions()).values():
        yield answering(versions)


def get(store: Store, document_id: str) -> StoredDocument | None:
    """A document with its chunks; None if it is not there."""
    versions = list(store.versions([document_id]))
    if not versions:
        return None
    version = answering(versions)
    # By place: a chunk that is stored twice counts once.
    found = {chunk.index: chunk for chunk in store.chunks([document_id]) if chunk.content_hash == version.content_hash}
    chunks = tuple(found[index] for index in sorted(found))
    return StoredDocument(
        id=document_id,
        content_hash=version.content_hash,
        source=version.source,
        metadata=_shared(chunks),
        chunks=chunks,
        count=version.count,
    )


def delete(store: Store, document_ids: Iterable[str]) -> int:
    """Removes documents; returns how many of them were there."""
    ids = iter(document_ids)
    removed = 0
    while batch := list(dict.fromkeys(islice(ids, _BATCH))):
        there = {version.document_id for version in store.versions(batch)}
        if there:
            store.delete_documents(sorted(there))
        removed += len(there)
    return removed


def _shared(chunks: tuple[Chunk, ...]) -> dict[str, object]:
    first, *others = chunks
    return {
        key: value
        for key, value in first.metadata.items()
        if all(key in other.metadata and other.metadata[key] == value for other in others)
    }
