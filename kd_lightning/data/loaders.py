"""Loaders of resident images: a batch is one indexing operation, and a resume needs only its position."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.fingerprints import mark_immutable
from kd_lightning.data.augmentation import Augmentation, augment, view_seeds
from kd_lightning.data.sources.base import LabeledImages

ImageBatch = tuple[Tensor, Tensor, Tensor]
"""x float32 (N, C, H, W) in [0, 1]; y int64 (N,); index int64 (N,), the rows of the resident tensors."""
BatchT = TypeVar("BatchT")


class EvaluationLoader:
    """Yields every row once, in order, divided among the ranks without padding or duplicates.

    Every rank gets the same number of batches, because a collective call in a forward pass (DistributedDataParallel
    sends buffers in each) must find all ranks; the batches' sizes differ by at most one.

    Args:
        data: The resident tensors.
        rows: The rows, int64 (M,).
        batch_size: At most this many rows a batch.
        num_channels: Channels that a grey image is expanded to, without a copy; None for the images' own.
        rank: Number of this share.
        world_size: Number of shares.
        augmentation: Applied to each image, float32 (C, H, W), under the row's own number of `seeds`.
        seeds: A number for each row of the resident tensors, int64; see `view_seeds`.

    Raises:
        UsageError: There are too few rows for every rank to get the same number of batches.

    Example:
        >>> data = LabeledImages(torch.zeros(7, 1, 2, 2, dtype=torch.uint8), torch.arange(7))
        >>> [index.tolist() for x, y, index in EvaluationLoader(data, torch.arange(7), batch_size=3)]
        [[0, 1, 2], [3, 4], [5, 6]]
    """

    def __init__(
        self,
        data: LabeledImages,
        rows: Tensor,
        batch_size: int,
        num_channels: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        augmentation: Augmentation | None = None,
        seeds: Tensor | None = None,
    ) -> None:
        chunks = math.ceil(len(rows) / (batch_size * world_size)) * world_size
        if chunks > len(rows):
            raise UsageError(
                f"{len(rows)} rows cannot be shared by {world_size} processes in batches of {batch_size}: "
                "raise eval_batch_size, or evaluate on one device"
            )
        self.data = data
        self.num_channels = num_channels
        self.indices = rows.to(data.labels.device).tensor_split(chunks)[rank::world_size]
        self.augmentation = augmentation
        self.seeds = seeds

    @property
    def num_rows(self) -> int:
        """Number of rows of this share."""
        return sum(len(index) for index in self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[ImageBatch]:
        for index in self.indices:
            x, y = _images_and_labels(self.data, index)
            if self.augmentation is not None and self.seeds is not None:
                x = augment(x, self.seeds[index].tolist(), self.augmentation)
            yield x if self.num_channels is None else x.expand(-1, self.num_channels, -1, -1), y, index


class ResumableLoader(ABC, Generic[BatchT]):
    """An endless stream of batches, of which each iteration yields the next ``len(loader)``: one epoch.

    A batch is a function of its position in the stream. The number of completed batches is therefore the whole state,
    whatever divides the stream into epochs: a limit on the batches, a resume, a second resume.

    Args:
        length: Batches an epoch.
        completed_batches: Returns the number of completed batches; without it the loader counts those it yielded.
    """

    def __init__(self, length: int, completed_batches: Callable[[], int] | None) -> None:
        self.length = length
        self._completed_batches = completed_batches
        self._given = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[BatchT]:
        first = self._position()
        for position in range(first, first + self.length):
            self._given = position + 1
            yield self._batch(position)

    def state_dict(self) -> dict[str, int]:
        """Return the position, on which alone, besides the arguments, the order depends."""
        return {"position": self._position()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Resume at the saved position."""
        self._given = state_dict["position"]

    @abstractmethod
    def _batch(self, position: int) -> BatchT:
        """Build the batch at a position of the stream."""

    def _position(self) -> int:
        return self._given if self._completed_batches is None else self._completed_batches()


class TrainLoader(ResumableLoader[ImageBatch]):
    """Shuffled batches of resident images, in an order that a run can resume at any batch.

    Batch number ``g`` of the stream is at place ``g % len(loader)`` of epoch ``g // len(loader)``. Its rows, and the
    augmentation's draws for each of them, depend on the seed, the epoch, the place and the rank alone, and all ranks
    together get the batch that one process with their global batch would get.

    Args:
        data: The resident tensors.
        rows: The rows to draw from, int64 (M,).
        batch_size: Rows a batch, on each rank.
        seed: Seed of the order and of the augmentation.
        steps_per_epoch: Full batches in an epoch, drawn over as many reshuffled passes over the rows as that takes;
            without it, an epoch is one pass.
        drop_last: Leave out the rest of a pass after its last full global batch; no effect with `steps_per_epoch`.
        augmentation: Applied to each image, float32 (C, H, W); it must draw from torch's default generator.
        num_channels: Channels that a grey image is expanded to, without a copy; None for the images' own.
        rank: Number of this part of each global batch.
        world_size: Number of parts.
        completed_batches: Returns the number of completed batches; without it the loader counts those it yielded.
        num_augmented_views: Number of fixed augmentations of each image: epoch ``e`` shows all images in view
            ``e % num_augmented_views``, in which an image's draws depend on the seed, the view and its row alone.
            Without it, every augmentation is new.

    Raises:
        UsageError: The rows are fewer than one global batch, or the last batch would differ among the ranks.

    Example:
        >>> data = LabeledImages(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.arange(5))
        >>> loader = TrainLoader(data, torch.arange(5), batch_size=2, seed=0, steps_per_epoch=5)
        >>> sorted(torch.cat([index for x, y, index in loader]).tolist())
        [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    """

    def __init__(
        self,
        data: LabeledImages,
        rows: Tensor,
        batch_size: int,
        seed: int,
        steps_per_epoch: int | None = None,
        drop_last: bool = True,
        augmentation: Augmentation | None = None,
        num_channels: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        completed_batches: Callable[[], int] | None = None,
        num_augmented_views: int | None = None,
    ) -> None:
        self.data = data
        self.rows = rows
        self.seed = seed
        self.augmentation = augmentation
        self.num_channels = num_channels
        self.rank = rank
        self.world_size = world_size
        self.global_batch = batch_size * world_size
        rest = len(rows) % self.global_batch if drop_last else 0
        self.epoch_rows = steps_per_epoch * self.global_batch if steps_per_epoch else len(rows) - rest
        if not self.epoch_rows:
            raise UsageError(
                f"train_size={len(rows)} images are fewer than one global batch (batch_size={batch_size} x "
                f"{world_size} processes): lower batch_size, or set steps_per_epoch"
            )
        if self.epoch_rows % world_size:
            raise UsageError(
                f"drop_last=False leaves a last batch of {len(rows) % self.global_batch} images, unequal shares for "
                f"{world_size} processes: set drop_last=True or steps_per_epoch"
            )
        super().__init__(math.ceil(self.epoch_rows / self.global_batch), completed_batches)
        self.num_augmented_views = num_augmented_views
        self._plan: tuple[int, list[Tensor], list[Tensor]] = (-1, [], [])
        self._view: tuple[int, Tensor] = (-1, torch.empty(0))

    @property
    def last_batch_size(self) -> int:
        """Number of this rank's images in the last batch of an epoch."""
        return (self.epoch_rows % self.global_batch or self.global_batch) // self.world_size

    def _batch(self, position: int) -> ImageBatch:
        epoch, place = divmod(position, self.length)
        if self._plan[0] != epoch:
            self._plan = (epoch, *self._draw(epoch))
        index = self._plan[1][place]
        x, y = _images_and_labels(self.data, index)
        if self.augmentation is not None:
            views = self.num_augmented_views
            seeds = self._plan[2][place] if views is None else self._seeds_of_view(epoch % views)[index]
            x = augment(x, seeds.tolist(), self.augmentation)
        if self.num_channels is not None:
            x = x.expand(-1, self.num_channels, -1, -1)
        if self.augmentation is None:
            mark_immutable(x, index)
        return x, y, index

    def _seeds_of_view(self, view: int) -> Tensor:
        if self._view[0] != view:
            self._view = (view, view_seeds(self.seed, view, len(self.data.labels)))
        return self._view[1]

    def _draw(self, epoch: int) -> tuple[list[Tensor], list[Tensor]]:
        """Draw this rank's rows, and a seed for each of them, batch by batch."""
        # the string is hashed, so that neighbouring seeds and epochs give independent numbers
        generator = torch.Generator().manual_seed(random.Random(f"{self.seed} {epoch}").getrandbits(63))
        passes = math.ceil(self.epoch_rows / len(self.rows))
        order = torch.cat([torch.randperm(len(self.rows), generator=generator) for _ in range(passes)])
        seeds = torch.randint(2**62, (self.epoch_rows,), generator=generator)
        rows = self.rows[order[: self.epoch_rows]].to(
            self.data.labels.device
        )  # one copy, because each waits for the device
        return self._share(rows), self._share(seeds)

    def _share(self, drawn: Tensor) -> list[Tensor]:
        return [whole.tensor_split(self.world_size)[self.rank] for whole in drawn.split(self.global_batch)]


def _images_and_labels(data: LabeledImages, index: Tensor) -> tuple[Tensor, Tensor]:
    return data.images.index_select(0, index).div(255), data.labels.index_select(0, index)
