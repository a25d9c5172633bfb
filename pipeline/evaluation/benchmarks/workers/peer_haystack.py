"""Haystack: an indexing and a query pipeline with QdrantDocumentStore and SentenceTransformersSimilarityRanker."""

from __future__ import annotations

from typing import Any

from serving import TOP_K, serve


class Haystack:
    """Components with their defaults, connected as Haystack's documentation does."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config

    def load(self) -> None:
        from haystack import Pipeline
        from haystack.components.writers import DocumentWriter
        from haystack_integrations.components.embedders.sentence_transformers import (
            SentenceTransformersDocumentEmbedder,
            SentenceTransformersTextEmbedder,
        )
        from haystack_integrations.components.rankers.sentence_transformers import SentenceTransformersSimilarityRanker
        from haystack_integrations.components.retrievers.qdrant import QdrantEmbeddingRetriever
        from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

        where = {"url": self._config["url"]} if self._config["url"] else {"path": self._config["folder"]}
        store = QdrantDocumentStore(
            **where, index="benchmark_haystack", embedding_dim=self._config["dimension"], similarity="cosine"
        )
        model = self._config["embedder"]
        self._indexing = Pipeline()
        self._indexing.add_component("embedder", SentenceTransformersDocumentEmbedder(model=model, progress_bar=False))
        self._indexing.add_component("writer", DocumentWriter(document_store=store))
        self._indexing.connect("embedder.documents", "writer.documents")
        self._querying = Pipeline()
        self._querying.add_component("embedder", SentenceTransformersTextEmbedder(model=model, progress_bar=False))
        self._querying.add_component("retriever", QdrantEmbeddingRetriever(document_store=store))
        self._querying.add_component(
            "ranker", SentenceTransformersSimilarityRanker(model=self._config["reranker"], top_k=TOP_K)
        )
        self._querying.connect("embedder.embedding", "retriever.query_embedding")
        self._querying.connect("retriever.documents", "ranker.documents")
        self._indexing.warm_up()
        self._querying.warm_up()

    def ingest(self, passages: list[dict[str, str]]) -> None:
        from haystack import Document

        documents = [Document(content=passage["text"], meta={"passage": passage["id"]}) for passage in passages]
        self._indexing.run({"embedder": {"documents": documents}})

    def query(self, text: str, top_n: int) -> list[str]:
        answer = self._querying.run(
            {"embedder": {"text": text}, "retriever": {"top_k": top_n}, "ranker": {"query": text}}
        )
        return [document.meta["passage"] for document in answer["ranker"]["documents"]]


serve(Haystack)
