"""Every training row once, in each view, as a training step gets it: visited by all processes together."""

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
from kd_lightning.core.fingerprints import row_fingerprints
from kd_lightning.core.learner import Learner
from kd_lightning.core.lightning_internals import before_batch_transfer
from kd_lightning.core.protocols import ProvidesAugmentedRows, ProvidesTrainingRows, data_module_of

TEACHER_BATCH_ON_CPU = 64
"""Rows a batch for a network on a CPU: with 1,000 its activations leave the processor's cache, at half the speed."""
FINGERPRINT_BATCH_ON_CPU = 500
"""Rows a batch for fingerprints alone: larger batches take more memory, smaller ones more calls of hooks."""
NOT_REPRODUCIBLE = "train_rows() returns other rows or another order each time: return all rows in one fixed order"


class RowFingerprints(NamedTuple):
    """Indices and fingerprints of R rows in V views."""

    indices: Tensor
    """(R,)."""
    fingerprints: Tensor
    """(V * R,), view by view."""


class TrainingRows:
    """Iterates over the training rows of a trainer's data module, and keeps their fingerprints.

    The data module is a `kd_lightning.core.protocols.ProvidesTrainingRows`, and a `ProvidesAugmentedRows` if its
    augmentation has a fixed number of views.

    Args:
        trainer: The trainer.
        learner: The scheme, which splits the batches.

    Raises:
        UsageError: The trainer has no such data module, or training inputs are random.
    """

    def __init__(self, trainer: Trainer, learner: Learner) -> None:
        self.trainer = trainer
        self.learner = learner
        data = data_module_of(trainer)
        if not isinstance(data, ProvidesTrainingRows):
            raise UsageError(
                f"{type(data).__name__} has no train_rows(), which TeacherCache needs: give the trainer a data module "
                "of kd_lightning.data, or remove TeacherCache"
            )
        self.data: Any = data
        if data.training_is_random:
            raise UsageError(
                "training inputs are random, so that teacher outputs cannot be cached by row: set the data's "
                "`num_augmented_views` to a number, its augmentation to null, or remove TeacherCache"
            )
        self.views = data.num_augmented_views if isinstance(data, ProvidesAugmentedRows) else None
        self._collected = torch.empty(0)

    @cached_property
    def num_rows(self) -> int:
        """Number of rows in one view, over all processes."""
        share: Any = self._loader(0)
        local = getattr(share, "num_rows", None)
        if local is None:
            local = sum(len(index_of(self.learner.split_batch(batch))) for batch in share)
        return int(all_gather_with_grad(torch.tensor([local], device=self.learner.device)).sum())

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        """Yield this process's batches, each with the row number at which those of all processes begin."""
        return self._batches(TEACHER_BATCH_ON_CPU)

    def collect_fingerprints(self) -> RowFingerprints:
        """Visit all rows, and return their fingerprints."""
        for _ in self._batches(FINGERPRINT_BATCH_ON_CPU):
            pass
        return self.take_fingerprints()

    def take_fingerprints(self) -> RowFingerprints:
        """Return the fingerprints of the last complete iteration, and free them here."""
        collected, self._collected = self._collected, torch.empty(0)
        return RowFingerprints(collected[0, : self.num_rows].clone(), collected[1].clone())

    def _batches(self, on_cpu: int) -> Iterator[tuple[int, Batch]]:
        size = on_cpu if self.learner.device.type == "cpu" else None
        start, total = 0, self.num_rows * (self.views or 1)
        # One allocation: small tensors of each batch would lie between the large ones of a forward pass and fragment
        # the allocator's memory.
        self._collected = torch.empty(2, total, dtype=torch.int64, device=self.learner.device)
        for view in range(self.views or 1):
            for batch in self._loader(view, size):
                split = self.learner.split_batch(self._as_in_training(batch))
                indices = all_gather_rows(index_of(split))
                if (end := start + len(indices)) > total:
                    raise UsageError(NOT_REPRODUCIBLE)
                self._collected[0, start:end] = indices
                self._collected[1, start:end] = all_gather_rows(row_fingerprints(split.teacher))
                yield start, split
                start = end
        first, *others = self._collected[0].tensor_split(self.views or 1)
        if start != total or any(not torch.equal(first, other) for other in others):
            raise UsageError(NOT_REPRODUCIBLE)

    def _loader(self, view: int, size: int | None = None) -> Any:
        of_view = {} if self.views is None else {"view": view}
        return self.data.train_rows(self.trainer.global_rank, self.trainer.world_size, batch_size=size, **of_view)

    def _as_in_training(self, batch: Any) -> Any:
        """Convert and transfer a batch as Lightning's training loop does before a step."""
        batch = self.trainer.precision_plugin.convert_input(batch)
        batch = before_batch_transfer(self.learner)(batch)
        return self.trainer.strategy.batch_to_device(batch)


def index_of(batch: Batch) -> Tensor:
    """Return the indices of a batch's rows."""
    if "index" not in batch.labels:
        raise UsageError(
            f"batches have {', '.join(batch.labels) or 'no labels'} and no `index`, by which TeacherCache looks rows "
            "up: add one"
        )
    return batch.labels["index"]


def all_gather_rows(local: Tensor) -> Tensor:
    """Concatenate the rows of all processes in the order of ranks; their numbers of rows may differ."""
    if not is_distributed():
        return local
    counts: list[int] = all_gather_with_grad(torch.tensor([len(local)], device=local.device)).tolist()
    most = max(counts)
    padded = torch.cat([local, local.new_zeros(most - len(local), *local.shape[1:])])
    parts = all_gather_with_grad(padded).split(most)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
