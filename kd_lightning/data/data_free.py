"""MNIST for who must not see it: noise to train on, and the real test set."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import NoReturn

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.data.idx import LabelledImages
from kd_lightning.data.mnist import MNISTDataModule

MEAN, DEVIATION = 0.1307, 0.3081
"""Of MNIST's pixels, as everybody normalises by them."""


class NoiseLoader:
    """Batches of Gaussian noise that never repeat; where it stands is kept in a checkpoint.

    Each batch is drawn by itself, from the seed and its number, for all processes together.

    Args:
        batch_size: Images a batch, on each process.
        epoch_steps: Batches an epoch.
        seed: Chooses the noise.
        channels: How often the one channel is shown.
        rank: Which share is given.
        world_size: How many shares there are.
        batches_done: Asked where training is; the loader's own count if not given.
    """

    def __init__(
        self,
        batch_size: int,
        epoch_steps: int,
        seed: int = 0,
        channels: int = 3,
        rank: int = 0,
        world_size: int = 1,
        batches_done: Callable[[], int] | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.epoch_steps = epoch_steps
        self.seed = seed
        self.channels = channels
        self.rank = rank
        self.world_size = world_size
        self._batches_done = batches_done
        self._given = 0

    def __len__(self) -> int:
        return self.epoch_steps

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        first = self._position()
        for position in range(first, first + self.epoch_steps):
            self._given = position + 1
            yield self._batch(position)

    def state_dict(self) -> dict[str, int]:
        """How many batches were trained on."""
        return {"position": self._position()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Goes on from there."""
        self._given = state_dict["position"]

    def _position(self) -> int:
        return self._given if self._batches_done is None else self._batches_done()

    def _batch(self, position: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(random.Random(f"{self.seed} noise {position}").getrandbits(63))
        of_all = self.batch_size * self.world_size
        share = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        noise = torch.randn(of_all, 1, 28, 28, generator=generator)[share] * DEVIATION + MEAN
        index = torch.arange(position * of_all, (position + 1) * of_all)[share]
        return {"image": noise.expand(-1, self.channels, -1, -1), "index": index}


class DataFreeMNISTDataModule(MNISTDataModule):
    """MNIST's test set, and no other image: a training batch is ``{"image": noise, "index": numbers}``, without labels.

    The noise is Gaussian, of the mean and deviation of MNIST's pixels: what a student learns from it is what any other
    method without data is to be measured by. The files of the training set are never opened. There is no validation,
    for that would be of training images.

    Args:
        batch_size: Images a batch, on each process: how many inputs a scheme is to make up.
        epoch_steps: Batches in an epoch.
        seed: Chooses the noise.
        eval_batch_size: At most this many images a batch in a test, on each process.
        channels: How often the one channel is shown.

    Raises:
        UsageError: An argument is out of its range, or a file of the package is damaged; the training set is asked for.

    Example:
        >>> batch = next(iter(DataFreeMNISTDataModule(batch_size=4).train_dataloader()))
        >>> batch["image"].shape, batch["index"]
        (torch.Size([4, 3, 28, 28]), tensor([0, 1, 2, 3]))
    """

    def __init__(
        self,
        batch_size: int = 128,
        epoch_steps: int = 200,
        seed: int = 0,
        eval_batch_size: int = 250,
        channels: int = 3,
    ) -> None:
        super().__init__(
            batch_size,
            val_size=0,
            seed=seed,
            epoch_steps=epoch_steps,
            eval_batch_size=eval_batch_size,
            channels=channels,
        )
        for given in ("train_size", "val_size", "drop_last", "views"):  # by MNIST's names
            del self.hparams[given]

    @property
    def training_is_random(self) -> bool:
        """No image is seen twice."""
        return True

    @property
    def train_rows(self) -> NoReturn:  # pyright: ignore[reportIncompatibleMethodOverride]
        """There are none, as ``hasattr`` finds."""
        raise AttributeError("DataFreeMNISTDataModule has no training images to give: use MNISTDataModule")

    def setup(self, stage: str) -> None:
        """Reads the test set where it is needed; training needs nothing."""
        if stage != "fit":
            super().setup(stage)
        elif self.trainer is not None:
            self._limit_val_batches = self.trainer.limit_val_batches
            self.trainer.limit_val_batches = 0

    def train_dataloader(self) -> NoiseLoader:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Noise."""
        assert self.epoch_steps is not None
        done = self._batches_done if self.trainer is not None else None
        ranks = self._rank_and_world_size()
        return NoiseLoader(self.batch_size, self.epoch_steps, self.seed, self.channels, *ranks, done)

    def _read(self, split: str) -> LabelledImages:
        if split == "train":
            raise UsageError("DataFreeMNISTDataModule reads no training image: use MNISTDataModule for what needs them")
        return super()._read(split)
