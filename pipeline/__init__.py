"""Two-stage retrieval for RAG: hybrid recall in Qdrant, then a reranker that one variable switches.

    from pipeline import Document, ingest, query

    ingest([Document(id="a", text="Qdrant stores vectors.")])
    hits = query("What stores vectors?", top_k=3).hits

Names are imported when first used: ``import pipeline`` costs nothing and loads no model library.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.build import ingest, query, register_embedder, register_reranker
    from pipeline.core import IngestOptions, Pipeline, QueryOptions
    from pipeline.embedders.embedded import embedded_tokenizer
    from pipeline.errors import (
        DocumentError,
        EmbedderError,
        FingerprintError,
        ForkedError,
        MissingExtraError,
        RagError,
        RerankerError,
        SettingsError,
        StoreError,
        StoreLockedError,
        StoreUnavailableError,
    )
    from pipeline.ingestion.run import Progress
    from pipeline.interfaces import Embedder, Reranker, Store
    from pipeline.reports import (
        ExportReport,
        Failure,
        ImportReport,
        IngestReport,
        Problem,
        ReindexReport,
        VerifyReport,
    )
    from pipeline.settings import Settings
    from pipeline.types import (
        Chunk,
        Document,
        DocumentVersion,
        Fingerprint,
        FirstStage,
        Hit,
        QueryResult,
        RerankScore,
        ScoreScale,
        StoredDocument,
    )
    from pipeline.where import Where

# OpenVINO sends usage statistics when it is imported and when it converts a model, and forks a process for each. Where
# this package is not installed it does without; None makes it look so.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

_HOME = {
    "pipeline.build": ("ingest", "query", "register_embedder", "register_reranker"),
    "pipeline.core": ("IngestOptions", "Pipeline", "QueryOptions"),
    "pipeline.embedders.embedded": ("embedded_tokenizer",),
    "pipeline.errors": (
        "DocumentError",
        "EmbedderError",
        "FingerprintError",
        "ForkedError",
        "MissingExtraError",
        "RagError",
        "RerankerError",
        "SettingsError",
        "StoreError",
        "StoreLockedError",
        "StoreUnavailableError",
    ),
    "pipeline.ingestion.run": ("Progress",),
    "pipeline.interfaces": ("Embedder", "Reranker", "Store"),
    "pipeline.reports": (
        "ExportReport",
        "Failure",
        "ImportReport",
        "IngestReport",
        "Problem",
        "ReindexReport",
        "VerifyReport",
    ),
    "pipeline.settings": ("Settings",),
    "pipeline.types": (
        "Chunk",
        "Document",
        "DocumentVersion",
        "Fingerprint",
        "FirstStage",
        "Hit",
        "QueryResult",
        "RerankScore",
        "ScoreScale",
        "StoredDocument",
    ),
    "pipeline.where": ("Where",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Chunk",
    "Document",
    "DocumentError",
    "DocumentVersion",
    "Embedder",
    "EmbedderError",
    "ExportReport",
    "Failure",
    "Fingerprint",
    "FingerprintError",
    "FirstStage",
    "ForkedError",
    "Hit",
    "ImportReport",
    "IngestOptions",
    "IngestReport",
    "MissingExtraError",
    "Pipeline",
    "Problem",
    "Progress",
    "QueryOptions",
    "QueryResult",
    "RagError",
    "ReindexReport",
    "RerankScore",
    "Reranker",
    "RerankerError",
    "ScoreScale",
    "Settings",
    "SettingsError",
    "Store",
    "StoreError",
    "StoreLockedError",
    "StoreUnavailableError",
    "StoredDocument",
    "VerifyReport",
    "Where",
    "embedded_tokenizer",
    "ingest",
    "query",
    "register_embedder",
    "register_reranker",
]


if not TYPE_CHECKING:  # a type checker would take every name for one that there is

    def __getattr__(name: str) -> Any:
        if name in _MODULE_OF:
            value = getattr(import_module(_MODULE_OF[name]), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
