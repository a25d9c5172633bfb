"""LlamaIndex as its page "Rerankers" shows: VectorStoreIndex on QdrantVectorStore, SentenceTransformerRerank."""

from __future__ import annotations

from typing import Any

from serving import TOP_K, serve


class LlamaIndex:
    """Its defaults, but for batches of 32 when embedding, as sentence-transformers has, instead of 10."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config

    def load(self) -> None:
        from llama_index.core import VectorStoreIndex
        from llama_index.embeddings.huggingface import HuggingFaceEmbedding
        from llama_index.postprocessor.sbert_rerank import SentenceTransformerRerank
        from llama_index.vector_stores.qdrant import QdrantVectorStore
        from qdrant_client import QdrantClient

        where = {"url": self._config["url"]} if self._config["url"] else {"path": self._config["folder"]}
        store = QdrantVectorStore(client=QdrantClient(**where), collection_name="benchmark_llamaindex")
        embedder = HuggingFaceEmbedding(model_name=self._config["embedder"], embed_batch_size=32)
        self._reranker = SentenceTransformerRerank(model=self._config["reranker"], top_n=TOP_K)
        self._index = VectorStoreIndex.from_vector_store(store, embed_model=embedder)

    def ingest(self, passages: list[dict[str, str]]) -> None:
        from llama_index.core.schema import TextNode

        self._index.insert_nodes(
            [
                TextNode(
                    text=passage["text"],
                    metadata={"passage": passage["id"]},
                    excluded_embed_metadata_keys=["passage"],
                    excluded_llm_metadata_keys=["passage"],
                )
                for passage in passages
            ]
        )

    def query(self, text: str, top_n: int) -> list[str]:
        nodes = self._index.as_retriever(similarity_top_k=top_n).retrieve(text)
        ranked = self._reranker.postprocess_nodes(nodes, query_str=text)
        return [node.node.metadata["passage"] for node in ranked]


serve(LlamaIndex)
