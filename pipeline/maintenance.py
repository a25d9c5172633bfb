"""``rag reindex``, ``rag rollback`` and ``rag gc``: arguments in, printed results out.

The imports that cost time are inside the commands.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.console import Json, print_json, sayer, stderr, stdout

if TYPE_CHECKING:
    from pipeline.interfaces import Store
    from pipeline.types import Fingerprint, Generation


def reindex(
    embedding_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The new model, instead of RAG_EMBEDDING_MODEL; --embedder names what opens it.",
        ),
    ] = None,
    embedder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Instead of RAG_EMBEDDER: sentence-transformers for a Hugging Face model, http, or a name that an "
            "installed package declares.",
        ),
    ] = None,
    chunk_tokens: Annotated[int | None, typer.Option(metavar="N", help="Instead of RAG_CHUNK_TOKENS.")] = None,
    chunk_overlap: Annotated[int | None, typer.Option(metavar="N", help="Instead of RAG_CHUNK_OVERLAP.")] = None,
    as_json: Json = False,
) -> None:
    """Make the collection anew for another model or chunk size.

    That is the embedding model; the texts are those that are stored. On a server queries go on with the old collection
    meanwhile; the embedded store is closed to other processes until the end. Killed and run again it goes on; on a
    server it is refused to another machine for up to two minutes.
    """
    from pipeline.core import Pipeline
    from pipeline.display import ingest_progress
    from pipeline.settings import Settings, variable

    asked = {
        "embedder": embedder,
        "embedding_model": embedding_model,
        "chunk_tokens": chunk_tokens,
        "chunk_overlap": chunk_overlap,
    }
    changes = {name: value for name, value in asked.items() if value is not None}
    with Pipeline.from_settings(Settings(**changes), rerank=False) as rag, ingest_progress(stderr()) as progress:
        report = rag.reindex(progress=progress)
    lines = {variable(name): value for name, value in changes.items()}
    if as_json:
        print_json(report.to_dict(exact=True) | {"settings": lines})
        return
    say = sayer(stdout())
    for warning in report.warnings:
        say(f"note: {warning}")
    if report.kept is None:
        say(f"nothing to do: {report.collection} was made with these settings")
    else:
        recut = f", {report.recut} of them cut anew" if report.recut else ""
        say(f"{report.documents} documents{recut}, {report.chunks} chunks written  ({report.seconds:.1f} s)")
        say(f"{report.collection} is in use now; {report.kept} is kept for rag rollback, rag gc removes it")
    if lines:
        say("set these, in .env or wherever your settings are, and start running programs again:")
        for name, value in lines.items():
            say(f"{name}={value}")


def rollback(as_json: Json = False) -> None:
    """Go back to the collection before the last reindex."""
    from pipeline.ingestion.reindexing import rollback as run

    with _store() as store:
        report = run(store)
    lines = _settings_of(report.fingerprint)
    if as_json:
        print_json(report.to_dict() | {"settings": lines})
        return
    say = sayer(stdout())
    say(f"{report.collection} is in use again; {report.kept} is kept")
    if report.behind:
        say(
            f"note: {report.behind} documents changed, came or went since the switch and are here as they were before: "
            f"run rag ingest again. Until then {report.kept} alone holds what is new: do not run rag gc before"
        )
    say(f"set these again, and the embedding model {report.fingerprint.embedder}; start running programs again:")
    for name, value in lines.items():
        say(f"{name}={value}")


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: Json = False,
) -> None:
    """Remove the collections that are not in use.

    That is what a reindex left: the kept one, and half-built ones. After that there is no rag rollback. What a running
    reindex builds stays, and in the embedded store what a program has open; on a server such a program gets an error
    from then on.
    """
    from pipeline.ingestion.reindexing import collect_garbage

    with _store() as store:
        report = collect_garbage(store, dry_run=dry_run)
    if as_json:
        print_json(report.to_dict())
    else:
        say = sayer(stdout())
        for one in report.removed:
            say(f"{'would remove' if dry_run else 'removed'} {described(one)}")
        for failure in report.failures:
            say(f"stays: {failure.source}: {failure.error}")
        if not report.removed and not report.failures:
            say("nothing to remove: there is only the collection in use")
    if report.failures:
        sys.exit(1)


def described(one: Generation) -> str:
    """A collection in one line."""
    words = {"current": "in use", "kept": "kept for rag rollback", "leftover": "half-built or left over"}
    state = f"being built by {one.builder}" if one.builder else words[one.state]
    made = one.fingerprint
    return f"{one.name} ({state})" + (f", {made.embedder}, {made.chunk_tokens} tokens a chunk" if made else "")


def _settings_of(fingerprint: Fingerprint) -> dict[str, Any]:
    """What of the settings a fingerprint tells: of the model it knows the name, not how it was asked for."""
    return {"RAG_CHUNK_TOKENS": fingerprint.chunk_tokens, "RAG_CHUNK_OVERLAP": fingerprint.chunk_overlap}


@contextmanager
def _store() -> Iterator[Store]:
    from pipeline.build import build_store
    from pipeline.settings import Settings

    store = build_store(Settings())
    try:
        yield store
    finally:
        store.close()
