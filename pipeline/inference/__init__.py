"""The CPU engine that the embedded embedder and cross-encoder share."""
