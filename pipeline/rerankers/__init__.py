"""Rerankers: one file for each strategy."""
