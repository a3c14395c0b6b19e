"""Losses on relations between samples."""
