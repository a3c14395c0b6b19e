"""Loaders of resident tensors: a batch is one index, and its place in the order is all that a resume needs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.data.idx import LabelledImages
from kd_lightning.fingerprints import vouch

Batch = tuple[Tensor, Tensor, Tensor]
"""x float32 (N, C, H, W) in [0, 1]; y int64 (N,); index int64 (N,), the rows of the resident tensors. All are there."""
Augmentation = Callable[[Tensor], Any]
"""An image to an image; typed Any because the command line takes a class there for what the function must be."""


class EvaluationLoader:
    """Every row once, in order, shared among the ranks without padding or duplicates.

    Every rank gets equally many batches, because a collective call in a forward pass (DistributedDataParallel sends
    buffers in each) must find all ranks; the batches' sizes differ by at most one.

    Args:
        data: The resident tensors.
        rows: The rows to give, int64 (M,).
        batch_size: At most this many rows a batch.
        channels: Channels of a batch's images; the one stored channel is expanded, not copied.
        rank: Which share is given.
        world_size: How many shares there are.
        augmentation: Applied to each image, float32 (1, H, W), under the row's own number of `seeds`.
        seeds: A number for each row of the resident tensors, int64; see `view_seeds`.

    Raises:
        UsageError: There are too few rows for every rank to get equally many batches.

    Example:
        >>> data = LabelledImages(torch.zeros(7, 1, 2, 2, dtype=torch.uint8), torch.arange(7))
        >>> [index.tolist() for x, y, index in EvaluationLoader(data, torch.arange(7), batch_size=3)]
        [[0, 1, 2], [3, 4], [5, 6]]
    """

    def __init__(
        self,
        data: LabelledImages,
        rows: Tensor,
        batch_size: int,
        channels: int = 3,
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
        self.channels = channels
        self.indices = rows.to(data.labels.device).tensor_split(chunks)[rank::world_size]
        self.augmentation = augmentation
        self.seeds = seeds

    @property
    def num_rows(self) -> int:
        """How many rows this share has."""
        return sum(len(index) for index in self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Batch]:
        for index in self.indices:
            x, y = _images_and_labels(self.data, index)
            if self.augmentation is not None and self.seeds is not None:
                x = _augmented(x, self.seeds[index].tolist(), self.augmentation)
            yield x.expand(-1, self.channels, -1, -1), y, index


class TrainLoader:
    """A stream of shuffled batches without end, of which each iteration gives the next ``len(loader)``: one epoch.

    Batch number ``g`` of the stream stands at place ``g % len(loader)`` of epoch ``g // len(loader)``. Its rows, and
    what the augmentation draws for each of them, depend on the seed, the epoch, the place and the rank alone, and all
    ranks together see what one process with their global batch would. So the number of batches that were trained on is
    all there is to remember, whatever cuts the stream into epochs: a limit on the batches, a resume, a second one.

    Args:
        data: The resident tensors.
        rows: The rows to draw from, int64 (M,).
        batch_size: Rows a batch, on each rank.
        seed: Of the order and of the augmentation.
        epoch_steps: Full batches in an epoch, drawn over as many reshuffled passes over the rows as that takes;
            without it, an epoch is one pass.
        drop_last: Leave out what is left of a pass after the last full global batch; of no effect with `epoch_steps`.
        augmentation: Applied to each image, float32 (1, H, W); it must draw from torch's default generator.
        channels: Channels of a batch's images; a single channel is expanded, not copied.
        rank: Which part of each global batch is given.
        world_size: How many parts there are.
        batches_done: Says how many batches were trained on. Without it the loader counts those it gave.
        views: In how many ways each image is augmented: epoch ``e`` shows all images in view ``e % views``, and what is
            drawn for an image depends on the seed, the view and its row alone. Without it there is no end of ways.

    Raises:
        UsageError: The rows are fewer than one global batch, or the last batch would differ among the ranks.

    Example:
        >>> data = LabelledImages(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.arange(5))
        >>> loader = TrainLoader(data, torch.arange(5), batch_size=2, seed=0, epoch_steps=5)
        >>> sorted(torch.cat([index for x, y, index in loader]).tolist())
        [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    """

    def __init__(
        self,
        data: LabelledImages,
        rows: Tensor,
        batch_size: int,
        seed: int,
        epoch_steps: int | None = None,
        drop_last: bool = True,
        augmentation: Augmentation | None = None,
        channels: int = 3,
        rank: int = 0,
        world_size: int = 1,
        batches_done: Callable[[], int] | None = None,
        views: int | None = None,
    ) -> None:
        self.data = data
        self.rows = rows
        self.seed = seed
        self.augmentation = augmentation
        self.channels = channels
        self.rank = rank
        self.world_size = world_size
        self.global_batch = batch_size * world_size
        rest = len(rows) % self.global_batch if drop_last else 0
        self.epoch_rows = epoch_steps * self.global_batch if epoch_steps else len(rows) - rest
        if not self.epoch_rows:
            raise UsageError(
                f"train_size={len(rows)} images are fewer than one global batch (batch_size={batch_size} x "
                f"{world_size} processes): lower batch_size, or set epoch_steps to the batches that an epoch is to have"
            )
        if self.epoch_rows % world_size:
            raise UsageError(
                f"drop_last=False leaves a last batch of {len(rows) % self.global_batch} images, unequal shares for "
                f"{world_size} processes: set drop_last=True or epoch_steps"
            )
        self.length = math.ceil(self.epoch_rows / self.global_batch)
        self._batches_done = batches_done
        self.views = views
        self._given = 0
        self._plan: tuple[int, list[Tensor], list[Tensor]] = (-1, [], [])
        self._view: tuple[int, Tensor] = (-1, torch.empty(0))

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        first = self._position()
        for position in range(first, first + self.length):
            self._given = position + 1
            yield self._batch(*divmod(position, self.length))

    def state_dict(self) -> dict[str, int]:
        """How many batches were trained on: besides the arguments, all that the order depends on."""
        return {"position": self._position()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Goes on from there."""
        self._given = state_dict["position"]

    def _position(self) -> int:
        return self._given if self._batches_done is None else self._batches_done()

    def _batch(self, epoch: int, place: int) -> Batch:
        if self._plan[0] != epoch:
            self._plan = (epoch, *self._draw(epoch))
        index = self._plan[1][place]
        x, y = _images_and_labels(self.data, index)
        if self.augmentation is not None:
            seeds = self._plan[2][place] if self.views is None else self._of_view(epoch % self.views)[index]
            x = _augmented(x, seeds.tolist(), self.augmentation)
        x = x.expand(-1, self.channels, -1, -1)
        if self.augmentation is None:
            vouch(x, index)
        return x, y, index

    def _of_view(self, view: int) -> Tensor:
        if self._view[0] != view:
            self._view = (view, view_seeds(self.seed, view, len(self.data.labels)))
        return self._view[1]

    def _draw(self, epoch: int) -> tuple[list[Tensor], list[Tensor]]:
        """This rank's rows, and a seed for each of them, batch by batch."""
        # a string is hashed whole, so that neighbouring seeds and epochs share nothing
        generator = torch.Generator().manual_seed(random.Random(f"{self.seed} {epoch}").getrandbits(63))
        passes = math.ceil(self.epoch_rows / len(self.rows))
        order = torch.cat([torch.randperm(len(self.rows), generator=generator) for _ in range(passes)])
        seeds = torch.randint(2**62, (self.epoch_rows,), generator=generator)
        rows = self.rows[order[: self.epoch_rows]].to(self.data.labels.device)  # once, for each copy waits
        return self._share(rows), self._share(seeds)

    def _share(self, drawn: Tensor) -> list[Tensor]:
        return [whole.tensor_split(self.world_size)[self.rank] for whole in drawn.split(self.global_batch)]


def view_seeds(seed: int, view: int, rows: int) -> Tensor:
    """What the augmentation of each row draws from in a view: a number that depends on seed, view and row alone.

    Example:
        >>> torch.equal(view_seeds(0, 1, rows=5)[:3], view_seeds(0, 1, rows=3))
        True
    """
    generator = torch.Generator().manual_seed(random.Random(f"{seed} view {view}").getrandbits(63))
    return torch.randint(2**62, (rows,), generator=generator)


def _images_and_labels(data: LabelledImages, index: Tensor) -> tuple[Tensor, Tensor]:
    return data.images.index_select(0, index).div(255), data.labels.index_select(0, index)


def _augmented(images: Tensor, seeds: list[int], augmentation: Augmentation) -> Tensor:
    """Each image under its own seed; the state of the default generator is left as it was found."""
    with torch.random.fork_rng(devices=[]):
        results: list[Tensor] = []
        for image, seed in zip(images, seeds, strict=True):
            torch.default_generator.manual_seed(seed)
            results.append(augmentation(image))
    return torch.stack(results)
