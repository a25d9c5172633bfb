"""Checks that everything the settings ask for is in reach, by using it once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from pipeline.build import (
    build_embedder,
    build_fallback,
    build_first_step,
    build_reranker,
    build_store,
    cascades,
    fallback_names,
)
from pipeline.closing import close
from pipeline.core import Pipeline
from pipeline.embedding import embed_documents
from pipeline.errors import RagError
from pipeline.interfaces import Embedder, Reranker
from pipeline.settings import Settings

_QUERY = "What does Qdrant store?"
_TEXTS = ["Qdrant stores vectors with their payload.", "今天天气很好。"]


@dataclass(frozen=True, slots=True)
class Check:
    """Outcome of one check."""

    name: str
    ok: bool
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """As in the JSON output of ``rag doctor``."""
        return asdict(self)


def examine(settings: Settings) -> list[Check]:
    """Uses the data directory, the store, the embedder and each reranker once; compares collection and settings."""

    def data_dir() -> str:
        folder = settings.data_dir.absolute()
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not existing.is_dir():
            raise RagError(f"{existing} is no folder: set RAG_DATA_DIR to one")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise RagError(f"{existing} is not writable: set RAG_DATA_DIR to a folder that is")
        return f"{folder}" + ("" if folder.exists() else " (will be made)")

    def store() -> str:
        with closing(build_store(settings)) as opened:
            count = opened.count()
            return f"{opened.name}: {count.documents} documents, {count.chunks} chunks"

    in_use = ExitStack()

    @cache
    def built() -> Embedder:
        model = build_embedder(settings)
        in_use.callback(close, model)
        return model

    def embedder() -> str:
        model = built()
        embed_documents(model, _TEXTS)
        return f"{model.name}, {model.dimension} dimensions, up to {model.max_tokens} tokens{_runs_on(model)}"

    def collection() -> str:
        with Pipeline(
            embedder=built(),
            store=build_store(settings),
            chunk_tokens=settings.chunk_tokens,
            chunk_overlap=settings.chunk_overlap,
        ) as rag:
            rag.check_collection()
            cut = f"chunks of up to {rag.chunk_tokens} tokens, {rag.chunk_overlap} shared"
            return f"made with this embedder, {cut}" if rag.store.fingerprint() else f"none yet; it would have {cut}"

    def reranker() -> str:
        return _answering(build_reranker(settings), ", for the best third of the candidates" if quick else "")

    quick = cascades(settings)
    checks = {"settings": _settings_source, "data directory": data_dir, "store": store}
    checks |= {"embedder": embedder, "collection": collection, "reranker": reranker}
    if quick:
        checks["first step"] = lambda: _answering(build_first_step(settings), ", for all candidates")
    for name in fallback_names(settings):
        checks[f"fallback {name}"] = partial(_fallback, settings, name)
    with in_use:
        return [_run(name, check) for name, check in checks.items()]


def _fallback(settings: Settings, name: str) -> str:
    return _answering(build_fallback(settings, name), ", where those before it fail")


def _answering(model: Reranker | None, part: str) -> str:
    """What a reranker makes of two texts; it is closed then."""
    if model is None:
        return "none: hits keep the order of the first stage"
    try:
        scores = model.score(_QUERY, _TEXTS)
        shown = ", ".join(f"{score.probability:.3f}" for score in scores)
        return f"{model.name}{_runs_on(model)}{part}: probabilities {shown} for a fitting and an unfitting text"
    finally:
        close(model)


def _runs_on(model: object) -> str:
    engine = getattr(model, "runs_on", None)
    return f", on {engine}" if engine else ""


def _settings_source() -> str:
    file = Path(".env")
    return f"environment and {file.absolute()}" if file.is_file() else "environment (no .env here)"


def _run(name: str, check: Callable[[], str]) -> Check:
    start = time.perf_counter()
    try:
        detail = check()
    except RagError as error:
        return Check(name, False, str(error))
    except Exception as error:  # noqa: BLE001  of a part that somebody else wrote: the other checks are to be made
        return Check(name, False, f"{type(error).__name__}: {error}")
    return Check(name, True, f"{detail}  ({(time.perf_counter() - start) * 1e3:.0f} ms)")
