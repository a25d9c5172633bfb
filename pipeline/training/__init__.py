"""``rag train-reranker``: a reranker for one's own documents."""
