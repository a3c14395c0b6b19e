"""Every training row once, in each view, as a training step is given it: by all processes together."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from kd_lightning.core.batch import Batch
from kd_lightning.core.distributed import all_gather_with_grad, is_distributed
from kd_lightning.core.errors import UsageError
from kd_lightning.core.fingerprints import fingerprints
from kd_lightning.core.learner import Learner
from kd_lightning.core.lightning_internals import before_batch_transfer
from kd_lightning.core.protocols import AugmentedTrainingRows, TrainingRows

ASKED_ON_CPU = 64
"""Rows that a network on a CPU is given at a time: of 1,000 its activations leave the cache, and take twice as long."""
SEEN_ON_CPU = 500
"""Rows that are looked at at a time: more of them take more memory, fewer more time for the hooks around a batch."""


OTHER_ROWS = "train_rows() gives other rows, or another order, each time: give all of them in one order"


class Inputs(NamedTuple):
    """What R rows look like in V views."""

    indices: Tensor
    """(R,)."""
    fingerprints: Tensor
    """(V * R,), view by view."""


class Walk:
    """Over the training rows of a trainer's data module, which says what they are.

    The data module is a `kd_lightning.core.protocols.TrainingRows`, and an `AugmentedTrainingRows` if its augmentation
    has a fixed number of views.

    Raises:
        UsageError: There is no such data module, or training inputs are random.
    """

    def __init__(self, trainer: Trainer, learner: Learner) -> None:
        self.trainer = trainer
        self.learner = learner
        data: object = getattr(trainer, "datamodule", None)
        if not isinstance(data, TrainingRows):
            raise UsageError(
                f"{type(data).__name__} has no train_rows() to walk over: give the trainer a data module of "
                "kd_lightning.data, or train without TeacherCache"
            )
        self.data: Any = data
        if data.training_is_random:
            raise UsageError(
                "training inputs are random, and what the teacher said about one does not hold for the next: set the "
                "data's `num_augmented_views` to a number, its augmentation to null, or train without TeacherCache"
            )
        self.views = data.num_augmented_views if isinstance(data, AugmentedTrainingRows) else None
        self._seen = torch.empty(0)

    @cached_property
    def num_rows(self) -> int:
        """How many rows there are, in one view."""
        share: Any = self._loader(0)
        own = getattr(share, "num_rows", None)
        if own is None:
            own = sum(len(index_of(self.learner.split_batch(batch))) for batch in share)
        return int(all_gather_with_grad(torch.tensor([own], device=self.learner.device)).sum())

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        """Batches for a network: of this process's rows, and at which place of the walk those of all begin."""
        return self._batches(ASKED_ON_CPU)

    def look(self) -> Inputs:
        """Walks for nothing but `inputs`."""
        for _ in self._batches(SEEN_ON_CPU):
            pass
        return self.inputs()

    def inputs(self) -> Inputs:
        """What all rows look like, as was seen on the whole walk before; it is told once."""
        seen, self._seen = self._seen, torch.empty(0)
        return Inputs(seen[0, : self.num_rows].clone(), seen[1].clone())

    def _batches(self, on_cpu: int) -> Iterator[tuple[int, Batch]]:
        size = on_cpu if self.learner.device.type == "cpu" else None
        start, whole = 0, self.num_rows * (self.views or 1)
        # Written into one place: what is kept of each batch by itself would lie between the large tensors of a forward
        # pass, and make it hard for the allocator to use their places again.
        self._seen = torch.empty(2, whole, dtype=torch.int64, device=self.learner.device)
        for view in range(self.views or 1):
            for batch in self._loader(view, size):
                split = self.learner.split_batch(self._as_in_training(batch))
                indices = merged(index_of(split))
                if (end := start + len(indices)) > whole:
                    raise UsageError(OTHER_ROWS)
                self._seen[0, start:end] = indices
                self._seen[1, start:end] = merged(fingerprints(split.teacher))
                yield start, split
                start = end
        first, *others = self._seen[0].tensor_split(self.views or 1)
        if start != whole or any(not torch.equal(first, other) for other in others):
            raise UsageError(OTHER_ROWS)

    def _loader(self, view: int, size: int | None = None) -> Any:
        own = {} if self.views is None else {"view": view}
        return self.data.train_rows(self.trainer.global_rank, self.trainer.world_size, batch_size=size, **own)

    def _as_in_training(self, batch: Any) -> Any:
        """What Lightning's training loop does to a batch before a step."""
        batch = self.trainer.precision_plugin.convert_input(batch)
        batch = before_batch_transfer(self.learner)(batch)
        return self.trainer.strategy.batch_to_device(batch)


def index_of(batch: Batch) -> Tensor:
    """The indices of a batch's rows."""
    if "index" not in batch.labels:
        raise UsageError(f"batches have {', '.join(batch.labels) or 'no labels'} and no index to look up: add one")
    return batch.labels["index"]


def merged(local: Tensor) -> Tensor:
    """The rows of all processes, in their order, of which each may have another number."""
    if not is_distributed():
        return local
    counts: list[int] = all_gather_with_grad(torch.tensor([len(local)], device=local.device)).tolist()
    most = max(counts)
    padded = torch.cat([local, local.new_zeros(most - len(local), *local.shape[1:])])
    parts = all_gather_with_grad(padded).split(most)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
