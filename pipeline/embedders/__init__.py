"""Embedding models: one file for each kind."""
