"""Losses on features of layers."""
