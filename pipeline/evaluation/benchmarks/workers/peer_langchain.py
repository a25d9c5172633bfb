"""LangChain as its page "Cross encoder reranker" shows: QdrantVectorStore, ContextualCompressionRetriever."""

from __future__ import annotations

from typing import Any

from serving import TOP_K, serve


class LangChain:
    """``HuggingFaceEmbeddings``, ``QdrantVectorStore``, ``CrossEncoderReranker``, all with their defaults."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config

    def load(self) -> None:
        from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
        from langchain_community.cross_encoders import HuggingFaceCrossEncoder
        from langchain_huggingface import HuggingFaceEmbeddings
        from langchain_qdrant import QdrantVectorStore
        from qdrant_client import QdrantClient
        from qdrant_client.models import Distance, VectorParams

        embeddings = HuggingFaceEmbeddings(model_name=self._config["embedder"])
        self._compressor = CrossEncoderReranker(
            model=HuggingFaceCrossEncoder(model_name=self._config["reranker"]), top_n=TOP_K
        )
        where = {"url": self._config["url"]} if self._config["url"] else {"path": self._config["folder"]}
        client = QdrantClient(**where)
        if not client.collection_exists("benchmark_langchain"):
            size = len(embeddings.embed_query("dimension"))
            client.create_collection(
                "benchmark_langchain", vectors_config=VectorParams(size=size, distance=Distance.COSINE)
            )
        self._store = QdrantVectorStore(client=client, collection_name="benchmark_langchain", embedding=embeddings)

    def ingest(self, passages: list[dict[str, str]]) -> None:
        from langchain_core.documents import Document

        self._store.add_documents(
            [Document(page_content=passage["text"], metadata={"passage": passage["id"]}) for passage in passages]
        )

    def query(self, text: str, top_n: int) -> list[str]:
        from langchain_classic.retrievers.contextual_compression import ContextualCompressionRetriever

        retriever = ContextualCompressionRetriever(
            base_compressor=self._compressor, base_retriever=self._store.as_retriever(search_kwargs={"k": top_n})
        )
        return [document.metadata["passage"] for document in retriever.invoke(text)]


serve(LangChain)
