"""Benchmarks: ours beside the peers, against the CPU's limit, and as a collection grows."""
