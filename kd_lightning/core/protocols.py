"""Structural types of data modules: the training rows that they provide, beyond Lightning's loaders."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Trainer


@runtime_checkable
class ProvidesTrainingRows(Protocol):
    """A data module whose training rows can be visited once each, in one fixed form and order.

    `isinstance` compares names alone, so that any data module can provide it. Callbacks that need every training row
    once, such as `kd_lightning.callbacks.TeacherCache`, require this protocol and no class.
    """

    @property
    def training_is_random(self) -> bool:
        """True if a row differs each time, so that no result may be cached by its index."""
        ...

    def train_rows(self, rank: int = 0, world_size: int = 1, batch_size: int | None = None) -> Iterable[Any]:
        """Return batches of every training row once, in one order.

        Args:
            rank: Number of the share.
            world_size: Number of shares; each has the same number of batches.
            batch_size: At most this many rows a batch, or the data module's own choice.
        """
        ...


@runtime_checkable
class ProvidesAugmentedRows(ProvidesTrainingRows, Protocol):
    """Training rows under an augmentation with a fixed number of views, each of which can be visited."""

    @property
    def num_augmented_views(self) -> int | None:
        """Number of fixed augmentations of each row; None without an augmentation, or if every one is new."""
        ...

    def view_of_batch(self) -> int:
        """Return the view of the batch that is trained on now, right after every resume."""
        ...

    def train_rows(
        self, rank: int = 0, world_size: int = 1, batch_size: int | None = None, view: int | None = None
    ) -> Iterable[Any]:
        """Return batches of every training row once, in one order; with `view`, augmented as in that view."""
        ...


def data_module_of(trainer: Trainer) -> object:
    """Return the data module of a trainer, or None; `isinstance` tells which of these protocols it has."""
    return trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
