"""A collection into a file, and from a file into a collection, on whichever store they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import DocumentError, FingerprintError, SettingsError
from pipeline.ingestion import collection
from pipeline.ingestion.changes import by_document
from pipeline.ingestion.dump import Header, reading, writing
from pipeline.ingestion.run import Progress
from pipeline.interfaces import Embedder, Store
from pipeline.types import Chunk, DocumentVersion, ExportReport, Fingerprint, ImportReport

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pair = tuple[Chunk, NDArray[np.float32] | None]

# Documents read, and chunks written, at once.
_DOCUMENTS = 100
_CHUNKS = 512


def export_to(
    store: Store, path: Path, *, vectors: bool = False, progress: Callable[[Progress], None] | None = None
) -> ExportReport:
    """Writes the version of each document that queries answer with.

    Raises:
        SettingsError: there is nothing to export, or the file cannot be written.
    """
    start = time.perf_counter()
    fingerprint = store.fingerprint()
    if fingerprint is None:
        raise SettingsError(f"{store.name} does not exist: nothing to export")
    documents = sorted(collection.documents(store), key=lambda version: version.document_id)
    warnings = [
        f"{version.document_id}: only {version.present} of {version.count} chunks are there (see rag verify)"
        for version in documents
        if not version.complete
    ]
    with writing(path, Header(fingerprint, vectors)) as out:
        for first in range(0, len(documents), _DOCUMENTS):
            batch = {version.document_id: version for version in documents[first : first + _DOCUMENTS]}
            for chunk, vector in _in_order(store, batch, vectors=vectors):
                out.add(chunk, vector)
            if progress is not None:
                done = min(first + _DOCUMENTS, len(documents))
                progress(Progress(0, 0, done, out.chunks, f"{done} of {len(documents)} documents exported"))
    return ExportReport(str(path), len(documents), out.chunks, vectors, warnings, time.perf_counter() - start)


def _in_order(store: Store, wanted: dict[str, DocumentVersion], *, vectors: bool) -> Iterator[Pair]:
    """The chunks of these versions, by document and place; one that is stored twice once."""
    stored: Iterable[Pair]
    if vectors:
        stored = store.chunks_with_vectors(list(wanted))
    else:
        stored = ((chunk, None) for chunk in store.chunks(list(wanted)))
    found = {
        (chunk.document_id, chunk.index): (chunk, vector)
        for chunk, vector in stored
        if chunk.content_hash == wanted[chunk.document_id].content_hash
    }
    for place in sorted(found):
        yield found[place]


def import_from(
    store: Store,
    embedder: Embedder,
    fingerprint: Fingerprint,
    path: Path,
    *,
    progress: Callable[[Progress], None] | None = None,
) -> ImportReport:
    """Brings the documents of a file that :func:`export_to` wrote into the collection; others there stay.

    A document replaces its other versions, after all of its chunks are written. One that is there already is passed
    over, so that an import that was cut off goes on where it was. Texts are embedded if the file has no vectors, or
    those of another model.

    Raises:
        SettingsError: the file cannot be read, or is no export.
        FingerprintError: the file's texts were cut in another way than the settings ask for.
        DocumentError: the file is damaged or was cut off.
    """
    start = time.perf_counter()
    with reading(path) as (header, pairs):
        embed, warnings = _compare(header, fingerprint, path)
        written = unchanged = chunks_written = chunks_deleted = 0
        for batch in _by_document(pairs):
            ids = [document[0][0].document_id for document in batch]
            stored = by_document(store.versions(ids))
            finished: dict[str, str] = {}
            due: list[Pair] = []
            for document in batch:
                first = document[0][0]
                versions = stored.get(first.document_id, [])
                same = [v for v in versions if v.complete and v.content_hash == first.content_hash]
                copies = tuple(sorted({*first.copies, *(copy for v in same for copy in v.copies)}))
                if any(set(copies) == set(v.copies) for v in same):
                    unchanged += 1
                else:
                    written += 1
                    due += [(replace(chunk, copies=copies), vector) for chunk, vector in document]
                # An incomplete one must not take the place of what is there.
                if len(document) == first.count and any(v.content_hash != first.content_hash for v in versions):
                    finished[first.document_id] = first.content_hash
            if due or finished:
                store.ensure_ready(fingerprint)
            for at in range(0, len(due), _CHUNKS):
                some = due[at : at + _CHUNKS]
                store.upsert([chunk for chunk, _ in some], _vectors(some, embedder, path, embed=embed))
                chunks_written += len(some)
                if progress is not None:
                    progress(Progress(0, 0, written + unchanged, chunks_written))
            if finished:
                chunks_deleted += store.delete_versions_except(finished)
    if chunks_written or chunks_deleted:
        store.optimize(lambda message: progress(Progress(0, 0, 0, 0, message)) if progress else None)
    return ImportReport(
        file=str(path),
        written=written,
        unchanged=unchanged,
        chunks_written=chunks_written,
        chunks_deleted=chunks_deleted,
        embedded=embed,
        warnings=warnings,
        seconds=time.perf_counter() - start,
    )


def _compare(header: Header, fingerprint: Fingerprint, path: Path) -> tuple[bool, list[str]]:
    """Whether the texts have to be embedded, and what is to be said about it."""
    differences = {name: (theirs, ours) for name, theirs, ours in header.fingerprint.differences(fingerprint)}
    model = [differences.pop(name) for name in ("embedder", "dimension") if name in differences]
    # BM25 is made anew in any case, from the texts.
    differences.pop("bm25", None)
    if differences:
        listed = "; ".join(f"{name}: {theirs!r}, asked for {ours!r}" for name, (theirs, ours) in differences.items())
        raise FingerprintError(
            f"the texts in {path} were cut in another way ({listed}). Set the file's values, or ingest the documents "
            "again"
        )
    if header.vectors and model:
        theirs, ours = header.fingerprint.embedder, fingerprint.embedder
        return True, [f"the vectors in {path} are of {theirs}: the texts are embedded again with {ours}"]
    return not header.vectors, []


def _by_document(pairs: Iterable[Pair]) -> Iterator[list[list[Pair]]]:
    """Whole documents, some at once."""
    batch: list[list[Pair]] = []
    size = 0
    try:
        for _, group in groupby(pairs, key=lambda pair: (pair[0].document_id, pair[0].content_hash)):
            document = list(group)
            batch.append(document)
            size += len(document)
            if size >= _CHUNKS:
                yield batch
                batch, size = [], 0
    except DocumentError:
        if batch:
            yield batch  # what is whole before the damage
        raise
    if batch:
        yield batch


def _vectors(pairs: Sequence[Pair], embedder: Embedder, path: Path, *, embed: bool) -> NDArray[np.float32]:
    import numpy as np

    if embed:
        return embedder.embed_documents([chunk.full_text for chunk, _ in pairs])
    vectors: list[Any] = [vector for _, vector in pairs]
    lost = next((chunk for chunk, vector in pairs if vector is None or vector.shape != (embedder.dimension,)), None)
    if lost is not None:
        raise DocumentError(f"{path}: a chunk of {lost.document_id} has no vector of {embedder.dimension} numbers")
    return np.stack(vectors)
