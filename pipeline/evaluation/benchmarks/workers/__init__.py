"""One script for each system: run by path in that system's own environment, so they import nothing of this package."""
