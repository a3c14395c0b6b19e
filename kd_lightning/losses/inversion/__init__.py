"""Losses on synthetic images, for distillation without data."""
