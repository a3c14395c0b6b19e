"""Distillation between two modalities of the same sample."""
