"""A collection seen as documents: what is there, one of them, and the removal of some."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from pipeline.ingestion.changes import answering, by_document
from pipeline.ingestion.copies import Embed, Sharing, related
from pipeline.interfaces import Store
from pipeline.types import Chunk, DocumentVersion, StoredDocument

_BATCH = 500
# Looks at a document that others are writing.
_LOOKS = 10


def documents(store: Store) -> Iterator[DocumentVersion]:
    """The version of each document that queries answer with."""
    for versions in by_document(store.versions()).values():
        yield answering(versions)


def get(store: Store, document_id: str) -> StoredDocument | None:
    """A document with its chunks; None if it is not there. The path of a copy leads to the document that has it."""
    for _ in range(_LOOKS):
        found = _get(store, document_id)
        if found is None or found.chunks:
            return found
    return None  # with each look its version had just been replaced


def _get(store: Store, document_id: str) -> StoredDocument | None:
    """As :func:`get`; without chunks where its version went between the look at the ledger and that at the chunks."""
    versions = [version for version in related(store, [document_id], []) if _is(version, document_id)]
    own = [version for version in versions if version.document_id == document_id]
    if not versions:
        return None
    version = answering(own or versions)
    # By place: a chunk that is stored twice counts once.
    found = {
        chunk.index: chunk
        for chunk in store.chunks([version.document_id])
        if chunk.content_hash == version.content_hash
    }
    chunks = tuple(found[index] for index in sorted(found))
    return StoredDocument(
        id=version.document_id,
        content_hash=version.content_hash,
        source=version.source,
        metadata=_shared(chunks),
        chunks=chunks,
        count=version.count,
        copies=version.copies,
    )


def delete(store: Store, document_ids: Iterable[str], embed: Embed) -> int:
    """Removes documents; returns how many of them were there.

    Of files with equal content only those that are named go; the document stays, as that of the others.
    """
    ids = iter(document_ids)
    removed = 0
    while batch := set(islice(ids, _BATCH)):
        there = set()
        sharing = Sharing()
        for version in related(store, sorted(batch), []):
            named = batch.intersection((version.document_id, *version.copies))
            there |= named
            if version.torn or (version.copies and named):
                sharing.note("", [version.content_hash])
        sharing.settle(store, embed, gone=batch)
        if there:
            store.delete_documents(sorted(there))
        removed += len(there)
    return removed


def _is(version: DocumentVersion, document_id: str) -> bool:
    return document_id == version.document_id or document_id in version.copies


def _shared(chunks: tuple[Chunk, ...]) -> dict[str, object]:
    return {
        key: value
        for first in chunks[:1]
        for key, value in first.metadata.items()
        if all(key in other.metadata and other.metadata[key] == value for other in chunks[1:])
    }
