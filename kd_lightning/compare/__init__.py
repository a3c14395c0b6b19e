"""A student with and without its teacher, fairly: variants under the same seeds, and what each is worth."""

from kd_lightning.compare.command import main

__all__ = ["main"]
