"""Keeping a collection in step with files while they change."""

DEBOUNCE_MS = 1_600
"""Longest time for which changes are gathered, in ms: watchfiles' default."""
