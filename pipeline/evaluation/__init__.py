"""Datasets, metrics and comparison runs."""
