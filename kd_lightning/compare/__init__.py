"""Compare training variants under the same seeds: each student with and without its teacher."""

from kd_lightning.compare.command import main

__all__ = ["main"]
