"""How the late-interaction reranker that comes with the package was trained: ``python -m pipeline.training.late``."""
