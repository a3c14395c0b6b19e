"""Pairs of images of one class."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.data.mnist import MNISTDataModule
from kd_lightning.data.tensors import TrainLoader


class PairLoader(TrainLoader):
    """A `TrainLoader` that gives every image a partner of its class: batches of 2 B rows, the partners behind.

    Row B + i is drawn from all rows of row i's class, row i included, by the number that seeds the augmentation of row
    i; the partner's own augmentation has the next number. So pairs, too, depend on the seed, the epoch, the place and
    the rank alone, and all ranks together see those of one process.

    The arguments are those of `TrainLoader`; `batch_size` counts the pairs.

    Example:
        >>> from kd_lightning.data.idx import LabelledImages
        >>> data = LabelledImages(torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 2, 0, 1, 2]))
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


class SameClassPairs(MNISTDataModule):
    """MNIST, every training image with a partner of its class: what `kd_lightning.schemes.CSKD` learns from.

    A training batch is ``(x, y, index)`` of 2 B rows, B images and, in the same order, B partners of the same classes;
    see `PairLoader`. Validation and test batches, and the arguments, are those of `MNISTDataModule`; `batch_size` B
    counts the pairs.

    Example:
        >>> x, y, index = next(iter(SameClassPairs(batch_size=64, train_size=100).train_dataloader()))
        >>> x.shape, torch.equal(y[:64], y[64:])
        (torch.Size([128, 3, 28, 28]), True)
    """

    def train_dataloader(self) -> PairLoader:
        """Shuffled batches of pairs."""
        plain = super().train_dataloader()
        return PairLoader(
            plain.data,
            plain.rows,
            self.batch_size,
            self.seed,
            epoch_steps=self.epoch_steps,
            drop_last=self.drop_last,
            augmentation=self.augmentation,
            channels=self.channels,
            rank=plain.rank,
            world_size=plain.world_size,
            batches_done=self._batches_done if self.trainer is not None else None,
            views=self.views,
        )
