"""sentence-transformers alone, as its "Retrieve & Re-Rank" page shows: encode, semantic_search, CrossEncoder.rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from serving import TOP_K, serve


class Plain:
    """Vectors in a NumPy file, brute-force search, ``CrossEncoder.rank`` with its defaults."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self._vectors = Path(config["folder"]) / "vectors.npy"
        self._passages = Path(config["folder"]) / "passages.json"

    def load(self) -> None:
        from sentence_transformers import CrossEncoder, SentenceTransformer

        self._embedder = SentenceTransformer(self._config["embedder"])
        self._reranker = CrossEncoder(self._config["reranker"])
        if self._vectors.exists():
            self._open()

    def _open(self) -> None:
        import numpy as np

        passages = json.loads(self._passages.read_text(encoding="utf-8"))
        self._ids = [passage["id"] for passage in passages]
        self._texts = [passage["text"] for passage in passages]
        self._matrix = np.load(self._vectors)

    def ingest(self, passages: list[dict[str, str]]) -> None:
        import numpy as np

        vectors = self._embedder.encode_document([passage["text"] for passage in passages], show_progress_bar=False)
        np.save(self._vectors, vectors)
        self._passages.write_text(json.dumps(passages), encoding="utf-8")
        self._open()

    def query(self, text: str, top_n: int) -> list[str]:
        from sentence_transformers.util import semantic_search

        vector = self._embedder.encode_query(text, show_progress_bar=False)
        hits = semantic_search(vector, self._matrix, top_k=top_n)[0]
        places = [hit["corpus_id"] for hit in hits]
        ranked = self._reranker.rank(text, [self._texts[i] for i in places], top_k=TOP_K, show_progress_bar=False)
        return [self._ids[places[rank["corpus_id"]]] for rank in ranked]


serve(Plain)
