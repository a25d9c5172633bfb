"""This package, through its public Pipeline. The configuration's ``settings`` are arguments of ``Settings``."""

from __future__ import annotations

from typing import Any

from serving import TOP_K, serve


class Ours:
    """Dense recall as the peers have it, so that equal weights give equal answers; no cache of scores."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._settings = {"data_dir": config["folder"], "qdrant_url": config["url"], **config["settings"]}

    def load(self) -> None:
        from pipeline import Pipeline, Settings

        self._rag = Pipeline.from_settings(
            Settings(**self._settings, score_cache=0, top_k=TOP_K, collection="benchmark")
        )

    def ingest(self, passages: list[dict[str, str]]) -> None:
        from pipeline import Document

        report = self._rag.ingest(Document(id=passage["id"], text=passage["text"]) for passage in passages)
        if report.failures:
            raise RuntimeError(f"{len(report.failures)} documents failed, first {report.failures[0]}")

    def query(self, text: str, top_n: int) -> list[str]:
        return [hit.document_id for hit in self._rag.query(text, top_n=top_n).hits]


serve(Ours)
