"""Losses on graphs of samples or of modalities."""
