"""Distillation from a few samples."""
