"""NoiseDataModule: noise for training, for methods without data, and the real test set."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.data.base import SourceDataModule
from kd_lightning.data.checks import check_num_channels, check_whole
from kd_lightning.data.loaders import EvaluationLoader, ResumableLoader
from kd_lightning.data.sources.base import Source


class NoiseLoader(ResumableLoader[dict[str, Tensor]]):
    """Batches ``{"image", "index"}`` of Gaussian noise that never repeats, in an order that a run can resume.

    Each batch is drawn from the seed and its position alone, for all processes together.

    Args:
        image_shape: (C, H, W).
        batch_size: Images a batch, on each process.
        steps_per_epoch: Batches an epoch.
        seed: Seed of the noise.
        mean: Mean of the noise: one number, or one for each channel.
        std: Standard deviation of the noise: one number, or one for each channel.
        num_channels: Channels that a grey image is expanded to, without a copy; None for the image's own.
        rank: Number of this share.
        world_size: Number of shares.
        completed_batches: Returns the number of completed batches; without it the loader counts those it yielded.

    Raises:
        UsageError: `mean`, `std` or `num_channels` does not fit the channels.

    Example:
        >>> batch = next(iter(NoiseLoader((3, 8, 8), batch_size=4, steps_per_epoch=10)))
        >>> batch["image"].shape, batch["index"]
        (torch.Size([4, 3, 8, 8]), tensor([0, 1, 2, 3]))
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        batch_size: int,
        steps_per_epoch: int,
        seed: int = 0,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        num_channels: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        completed_batches: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(steps_per_epoch, completed_batches)
        check_num_channels(num_channels, image_shape[0], f"image_shape={[*image_shape]}")
        for name, value in (("mean", mean), ("std", std)):
            if not isinstance(value, int | float) and len(value) != image_shape[0]:
                raise UsageError(f"{name}={[*value]} must be one number, or one for each of {image_shape[0]} channels")
        self.image_shape = image_shape
        self.batch_size = batch_size
        self.seed = seed
        self.mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)
        self.num_channels = num_channels
        self.rank = rank
        self.world_size = world_size

    def _batch(self, position: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(random.Random(f"{self.seed} noise {position}").getrandbits(63))
        of_all = self.batch_size * self.world_size
        share = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        noise = torch.randn(of_all, *self.image_shape, generator=generator)[share] * self.std + self.mean
        index = torch.arange(position * of_all, (position + 1) * of_all)[share]
        return {"image": noise.expand(-1, self.num_channels or -1, -1, -1), "index": index}


class NoiseDataModule(SourceDataModule):
    """Gaussian noise for training, without labels, and a source's test set; no training rows and no validation.

    A training batch is ``{"image": noise, "index": numbers}``. A student trained on noise is the baseline of every
    method without data; schemes that synthesize their inputs use only the batch's size and numbers. The source's
    training set is never read.

    Args:
        source: The test images.
        batch_size: Images a batch, on each process.
        steps_per_epoch: Batches in an epoch.
        seed: Seed of the noise.
        eval_batch_size: At most this many images a batch in a test, on each process.
        num_channels: Repeats a grey image to this number of channels, in noise and test images.
        image_shape: [C, H, W] of the noise; the source's if not given.
        mean: Mean of the noise: one number, or one for each channel.
        std: Standard deviation of the noise: one number, or one for each channel.

    Raises:
        UsageError: An argument is out of its range.

    Example:
        >>> from kd_lightning.data import MNIST
        >>> data = NoiseDataModule(MNIST(), batch_size=4, num_channels=3, mean=0.1307, std=0.3081)
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["image"].shape, batch["index"]
        (torch.Size([4, 3, 28, 28]), tensor([0, 1, 2, 3]))
    """

    def __init__(
        self,
        source: Source,
        batch_size: int = 128,
        steps_per_epoch: int = 200,
        seed: int = 0,
        eval_batch_size: int = 250,
        num_channels: int | None = None,
        image_shape: list[int] | None = None,
        mean: float | list[float] = 0.0,
        std: float | list[float] = 1.0,
    ) -> None:
        hyperparameters = {
            "batch_size": batch_size,
            "steps_per_epoch": steps_per_epoch,
            "seed": seed,
            "eval_batch_size": eval_batch_size,
            "num_channels": num_channels,
            "image_shape": image_shape,
            "mean": mean,
            "std": std,
        }
        super().__init__(source, eval_batch_size, num_channels, hyperparameters)
        check_whole("batch_size", batch_size, least=1)
        check_whole("steps_per_epoch", steps_per_epoch, least=1)
        check_whole("seed", seed, least=0)
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self.mean = mean
        self.std = std
        self.image_shape = image_shape
        if image_shape is not None and (len(image_shape) != 3 or min(image_shape) < 1):
            raise UsageError(f"image_shape={image_shape} is not [channels, height, width], e.g. [3, 32, 32]")

    @property
    def example_input_array(self) -> Tensor:
        """One image of zeros."""
        channels, *size = self._noise_shape()
        return torch.zeros(1, self.num_channels or channels, *size)

    def setup(self, stage: str) -> None:
        """Read the test set, except for training, which does not need it."""
        if stage == "validate":
            raise UsageError("NoiseDataModule has no validation images: use test")
        if stage == "fit":
            self._suspend_validation()
        else:
            _ = self.test_set

    def train_dataloader(self) -> NoiseLoader:
        """Batches of noise, in an order that can be resumed."""
        return NoiseLoader(
            self._noise_shape(),
            self.batch_size,
            self.steps_per_epoch,
            self.seed,
            self.mean,
            self.std,
            self.num_channels,
            *self._rank_and_world_size(),
            self._progress(),
        )

    def val_dataloader(self) -> list[EvaluationLoader]:
        """An empty list: there are no images to validate on."""
        return []

    def test_dataloader(self) -> EvaluationLoader:
        """All test images, in the order of the test set."""
        data = self._resident(self.test_set)
        rows = torch.arange(len(data.labels))
        return EvaluationLoader(data, rows, self.eval_batch_size, self.num_channels, *self._rank_and_world_size())

    def _noise_shape(self) -> Sequence[int]:
        return self.image_shape or self.source.image_shape or self.test_set.images.shape[1:]
