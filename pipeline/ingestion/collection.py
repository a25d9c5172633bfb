"""A collection seen as documents: what is there, one of them, and the removal of some."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from pipeline.errors import SettingsError
from pipeline.ingestion.changes import answering, by_document
from pipeline.ingestion.copies import Embed, Sharing, related
from pipeline.ingestion.recutting import put_together
from pipeline.interfaces import Store
from pipeline.types import Chunk, DocumentVersion, StoredDocument
from pipeline.where import Where, alternatives

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pair = tuple[Chunk, NDArray[np.float32] | None]
    """With its vector, where that is asked for."""

_BATCH = 500
LOOKS = 10
"""Looks at a document that others are writing."""


def documents(store: Store, where: Where | None = None) -> Iterator[DocumentVersion]:
    """The version of each document that queries answer with, or of those of which a chunk passes ``where``."""
    if where is None:
        for versions in by_document(store.versions()).values():
            yield answering(versions)
        return
    for version, _ in _passing(store, where):
        yield version


def _passing(store: Store, where: Where) -> Iterator[tuple[DocumentVersion, int]]:
    """Each document's version that queries answer with, and how many of its chunks pass, if any does."""
    passing: dict[str, dict[str, int]] = {}
    for version in store.passing(where):
        passing.setdefault(version.document_id, {})[version.content_hash] = version.present
    ids = iter(passing)
    while batch := list(islice(ids, _BATCH)):
        for id_, versions in by_document(store.versions(batch)).items():
            version = answering(versions)
            if passed := passing[id_].get(version.content_hash):
                yield version, passed


def left_to_copies(documents: Iterable[Sequence[DocumentVersion]]) -> list[str]:
    """Warnings that name the paths whose content is only in a version that no document answers with.

    ``documents`` are the versions of each document of a collection.

    Until an ingest of a changed file is at its end, what the file had before is still what its copies have. It is
    stored under the file's name, which leads to what is new.
    """
    named: set[str] = set()
    copies: set[str] = set()
    for versions in documents:
        best = answering(versions)
        named.update(best.sources)
        copies.update(path for version in versions if version.complete and version != best for path in version.copies)
    why = "left out, as the ingest of a change to an equal file was cut off or goes on; rag ingest mends that"
    return [f"{path}: {why}" for path in sorted(copies - named)]


def get(store: Store, document_id: str) -> StoredDocument | None:
    """A document with its chunks; None if it is not there. The path of a copy leads to the document that has it."""
    for _ in range(LOOKS):
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
    # A part of it under its own name is what a cut-off removal left; whole it may be under another one.
    version = answering([one for one in own if one.complete] or versions)
    pairs = in_order(store, {version.document_id: version}).get(version.document_id, [])
    chunks = tuple(chunk for chunk, _ in pairs)
    return StoredDocument(
        id=version.document_id,
        content_hash=version.content_hash,
        source=version.source,
        metadata=_shared(chunks),
        chunks=chunks,
        count=version.count,
        copies=version.copies,
    )


def context(store: Store, chunk: Chunk, before: int, after: int, *, overlapping: bool) -> str:
    """The chunk's text with that of its neighbours; alone where its document was changed or removed meanwhile."""
    document = store.chunks([chunk.document_id])
    stored = {one.index: one.text for one in document if one.content_hash == chunk.content_hash}
    if chunk.index not in stored:
        return chunk.text
    wanted = range(chunk.index - before, chunk.index + after + 1)
    return put_together([stored[index] for index in wanted if index in stored], overlapping=overlapping)[0]


def in_order(store: Store, wanted: Mapping[str, DocumentVersion], *, vectors: bool = False) -> dict[str, list[Pair]]:
    """The chunks of these versions by document, in the order of the text; one that is stored twice counts once.

    A document of which none is found, as it was removed or replaced meanwhile, is left out.
    """
    stored: Iterable[Pair]
    if vectors:
        stored = store.chunks_with_vectors(list(wanted))
    else:
        stored = ((chunk, None) for chunk in store.chunks(list(wanted)))
    found: dict[str, dict[int, Pair]] = {}
    for chunk, vector in stored:
        if chunk.content_hash == wanted[chunk.document_id].content_hash:
            found.setdefault(chunk.document_id, {})[chunk.index] = chunk, vector
    return {id_: [found[id_][index] for index in sorted(found[id_])] for id_ in wanted if id_ in found}


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


def delete_where(store: Store, where: Where, embed: Embed) -> int:
    """Removes the documents of which all chunks pass the filter, with all their names; returns how many there were.

    Raises:
        SettingsError: it is empty, or names documents instead of metadata.
    """
    asked = alternatives(where)
    if not asked or any(all(map(_passes_all, one.values())) for one in asked):
        raise SettingsError(
            f"a delete with where={where!r} would remove everything: say what the metadata are of what shall go"
        )
    for key in ("source", "document_id", "file_name", '"file_name"'):
        if any(key in one for one in asked):  # of files with equal content one has it, and the others would go, too
            raise SettingsError(
                f"delete(where=...) is by metadata, not by {key}: give the ids themselves, delete([...])"
            )
    found = [version for version, passed in _passing(store, where) if passed >= version.present]
    delete(store, [name for version in found for name in (version.document_id, *version.copies)], embed)
    return len(found)


def _passes_all(wanted: object) -> bool:
    """Whether a condition is none of nothing."""
    return (
        isinstance(wanted, Mapping)
        and list(wanted) == ["not"]
        and isinstance(wanted["not"], list | tuple | set | frozenset)
        and not wanted["not"]
    )


def _is(version: DocumentVersion, document_id: str) -> bool:
    return document_id == version.document_id or document_id in version.copies


def _shared(chunks: tuple[Chunk, ...]) -> dict[str, object]:
    return {
        key: value
        for first in chunks[:1]
        for key, value in first.metadata.items()
        if all(key in other.metadata and other.metadata[key] == value for other in chunks[1:])
    }
