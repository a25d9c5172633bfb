"""A collection into a file, and from a file into a collection, on whichever store they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.embedding import embed_documents
from pipeline.errors import DocumentError, FingerprintError, SettingsError
from pipeline.ingestion import collection
from pipeline.ingestion.agreement import make_ready
from pipeline.ingestion.changes import answering, by_document
from pipeline.ingestion.copies import Related, Sharing, related
from pipeline.ingestion.dump import Header, reading, writing
from pipeline.ingestion.run import Progress
from pipeline.interfaces import Embedder, Store
from pipeline.reports import ExportReport, ImportReport
from pipeline.types import Chunk, DocumentVersion, Fingerprint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.ingestion.collection import Pair

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
    documents = by_document(store.versions())
    ids = sorted(documents)
    warnings = collection.left_to_copies(documents.values())
    del documents  # of a large collection they are much
    exported = 0
    with writing(path, Header(fingerprint, vectors)) as out:
        for first in range(0, len(ids), _DOCUMENTS):
            whole, restless = _whole(store, ids[first : first + _DOCUMENTS], vectors=vectors)
            warnings += [f"{id_}: left out, as it was changed again and again meanwhile" for id_ in restless]
            for pairs in whole:
                exported += 1
                count = pairs[0][0].count
                if len(pairs) < count:
                    id_ = pairs[0][0].document_id
                    warnings.append(f"{id_}: only {len(pairs)} of {count} chunks are there (see rag verify)")
                for chunk, vector in pairs:
                    out.add(chunk, vector)
            if progress is not None:
                done = min(first + _DOCUMENTS, len(ids))
                progress(Progress(0, 0, done, out.chunks, f"{done} of {len(ids)} documents exported"))
    return ExportReport(str(path), exported, out.chunks, vectors, warnings, time.perf_counter() - start)


def _whole(store: Store, ids: Sequence[str], *, vectors: bool) -> tuple[list[list[Pair]], list[str]]:
    """The chunks of each of these documents, in order, and ids of those that did not hold still.

    One that is replaced between the look at its version and that at its chunks is looked at once more. What was removed
    meanwhile is in neither.
    """
    whole: dict[str, list[Pair]] = {}
    left: Sequence[str] = ids
    for _ in range(collection.LOOKS):
        wanted = {id_: answering(found) for id_, found in by_document(store.versions(left)).items()}
        for id_, pairs in collection.in_order(store, wanted, vectors=vectors).items():
            if len(pairs) >= wanted[id_].present:
                whole[id_] = pairs
        left = [id_ for id_ in ids if id_ in wanted and id_ not in whole]
        if not left:
            break
    return [whole[id_] for id_ in ids if id_ in whole], [*left]


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
        sharing = Sharing()
        now: dict[str, str] = {}
        for batch in _by_document(pairs):
            firsts = [document[0][0] for document in batch]
            names = sorted({path for first in firsts for path in (first.document_id, *first.copies)})
            held = Related(related(store, names, sorted({first.content_hash for first in firsts})))
            stale: dict[str, set[str]] = {}
            due: list[list[Pair]] = []
            for document in batch:
                first = document[0][0]
                named = held.versions.get(first.document_id, [])
                versions = [v for v in named if v.document_id == first.document_id]
                same = [v for v in versions if v.complete and v.content_hash == first.content_hash]
                # What is here under a copy's name is this collection's own, and stays.
                own = {path for path in first.copies if _other(held.versions.get(path, []), first)}
                copies = tuple(sorted({*first.copies, *(copy for v in same for copy in v.copies)} - own))
                # An incomplete one must not take the place of what is there.
                others = [v for v in versions if v.content_hash != first.content_hash and len(document) == first.count]
                shared = any(v.copies or v.torn for v in others)
                holders = held.holders.get(first.content_hash, 0) if first.document_id == first.source else 0
                if shared or len(named) > len(versions) or holders > len(same):
                    # What it replaces is other files', too, or its name is that of a copy, or another has the content.
                    sharing.note(first.document_id, {first.content_hash, *(v.content_hash for v in named)})
                    now[first.document_id] = first.content_hash
                # Or it is there under the name of an equal file, which names this one.
                joined = [v for v in named if v.complete and not v.torn and v.content_hash == first.content_hash]
                if any(set(copies) == set(v.copies) for v in same) or any(
                    {first.document_id, *copies} <= {*v.copies, v.document_id} for v in joined if v not in versions
                ):
                    unchanged += 1
                else:
                    written += 1
                    due.append([(replace(chunk, copies=copies), vector) for chunk, vector in document])
                if others and not shared:
                    stale[first.document_id] = {v.content_hash for v in others}
            if due or stale:
                make_ready(store, fingerprint)
            for some in _parts(due, store.whole_chunks):
                store.upsert([chunk for chunk, _ in some], _vectors(some, embedder, path, embed=embed))
                chunks_written += len(some)
                if progress is not None:
                    progress(Progress(0, 0, written + unchanged, chunks_written))
            if stale:
                chunks_deleted += store.delete_versions(stale)
        moved, removed = sharing.settle(store, partial(embed_documents, embedder), now=now)
        chunks_written += moved
        chunks_deleted += removed
    # May be due even if nothing changed: the last import may have been cut off.
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


def _parts(documents: Iterable[list[Pair]], longest: int) -> Iterator[list[Pair]]:
    """What goes to the store at once: whole documents, as queries rely on, but for those that are too long for that."""
    whole: list[Pair] = []
    for document in documents:
        if len(document) <= longest:
            whole += document
        else:
            for start in range(0, len(document), _CHUNKS):
                yield document[start : start + _CHUNKS]
    if whole:
        yield whole


def _other(versions: Iterable[DocumentVersion], chunk: Chunk) -> bool:
    """Whether one of these is another content than the chunk's."""
    return any(version.content_hash != chunk.content_hash for version in versions)


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
        return embed_documents(embedder, [chunk.full_text for chunk, _ in pairs])
    vectors: list[Any] = [vector for _, vector in pairs]
    lost = next((chunk for chunk, vector in pairs if vector is None or vector.shape != (embedder.dimension,)), None)
    if lost is not None:
        raise DocumentError(f"{path}: a chunk of {lost.document_id} has no vector of {embedder.dimension} numbers")
    return np.stack(vectors)
