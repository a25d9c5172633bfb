"""Readers of files, chunking, and what changed since the last ingest."""
