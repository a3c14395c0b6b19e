"""Distillation between modalities."""
