"""Augmentation of single images, each under its own seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Augmentation = Callable[[Tensor], Any]
"""A function of an image that returns an image; the command line passes a callable object."""


def augment(images: Tensor, seeds: list[int], augmentation: Augmentation) -> Tensor:
    """Apply an augmentation to each image under its own seed; torch's default generator is left unchanged.

    Args:
        images: (N, C, H, W).
        seeds: N numbers.
        augmentation: Function of one image (C, H, W); it draws from torch's default generator.
    """
    with torch.random.fork_rng(devices=[]):
        results: list[Tensor] = []
        for image, seed in zip(images, seeds, strict=True):
            torch.default_generator.manual_seed(seed)
            results.append(augmentation(image))
    return torch.stack(results)


def view_seeds(seed: int, view: int, rows: int) -> Tensor:
    """Draw the augmentation seed of each row in a view: a function of the data's seed, the view and the row alone.

    Example:
        >>> torch.equal(view_seeds(0, 1, rows=5)[:3], view_seeds(0, 1, rows=3))
        True
    """
    generator = torch.Generator().manual_seed(random.Random(f"{seed} view {view}").getrandbits(63))
    return torch.randint(2**62, (rows,), generator=generator)
