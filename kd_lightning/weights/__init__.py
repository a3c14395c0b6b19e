"""Weights of networks: reading files, loading, averaging, copying, pruning and exporting."""
