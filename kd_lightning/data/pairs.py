"""Pairs of images of one class."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.data.loaders import TrainLoader
from kd_lightning.data.module import ResidentDataModule


class PairLoader(TrainLoader):
    """A `TrainLoader` that adds a partner of its class to every image: batches of 2 B rows, partners last.

    Row B + i is drawn from all rows of row i's class, row i included, by the number that seeds the augmentation of row
    i; the partner's own augmentation has the next number. So pairs, too, depend on the seed, the epoch, the place and
    the rank alone, and all ranks together get those of one process.

    The arguments are those of `TrainLoader`; `batch_size` counts the pairs.

    Example:
        >>> from kd_lightning.data import LabeledImages
        >>> data = LabeledImages(torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 2, 0, 1, 2]))
        >>> x, y, index = next(iter(PairLoader(data, torch.arange(6), batch_size=3, seed=0)))
        >>> torch.equal(y[:3], y[3:])
        True
    """

    def _draw(self, epoch: int) -> tuple[list[Tensor], list[Tensor]]:
        batches, seeds = super()._draw(epoch)
        rows = self.rows.to(self.data.labels.device)
        labels = self.data.labels[rows]
        by_class, counts = rows[labels.argsort(stable=True)], labels.bincount()
        classes = self.data.labels[torch.cat(batches)]
        first = counts.cumsum(dim=0) - counts  # where a class begins in by_class
        drawn = torch.cat(seeds).to(rows.device) % counts[classes]
        partners = by_class[first[classes] + drawn].split([len(batch) for batch in batches])
        pairs = [torch.cat(pair) for pair in zip(batches, partners, strict=True)]
        return pairs, [torch.cat((numbers, numbers + 1)) for numbers in seeds]


class SameClassPairs(ResidentDataModule):
    """`ResidentDataModule` with a partner of its class for every training image: see `kd_lightning.schemes.CSKD`.

    A training batch is ``(x, y, index)`` of 2 B rows, B images and, in the same order, B partners of the same classes;
    see `PairLoader`. Validation and test batches, and the arguments, are those of `ResidentDataModule`; `batch_size` B
    counts the pairs.

    Example:
        >>> from kd_lightning.data import MNIST
        >>> x, y, index = next(iter(SameClassPairs(MNIST(), batch_size=64, train_size=100).train_dataloader()))
        >>> x.shape, torch.equal(y[:64], y[64:])
        (torch.Size([128, 1, 28, 28]), True)
    """

    train_loader_class = PairLoader
