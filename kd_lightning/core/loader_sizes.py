"""Sizes of the training loaders, known before the first batch: no batch, or a last one of one sample."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.hooks import RemovableHandle

from kd_lightning.core.attached import attach, detach, find_attached
from kd_lightning.core.can_teach import MORE_SAMPLES
from kd_lightning.core.distributed import world_size
from kd_lightning.core.errors import UsageError
from kd_lightning.core.terms import Terms
from kd_lightning.core.torch_internals import BatchNorm


class LoaderSizes(Callback):
    """Tell of a fit without a batch, and in its first batch of a last one that is too small.

    A last batch of one sample ends the run after an epoch where a BatchNorm has one value per channel, or a loss
    compares samples with each other. Its size is known before, and what cannot take it is found in the first batch.

    A `Learner` and `Distillation` attach it; it leaves the trainer once training has begun.

    Raises:
        UsageError: The training loader is empty, or the last batch cannot be trained on.
    """

    hooks_are_recordable = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the first batch be looked at, where the last one has one sample."""
        if 1 in last_sizes(trainer):
            for name, layer in pl_module.named_modules():
                if isinstance(layer, BatchNorm) and layer.training and not is_synchronized(layer):
                    _check_next_call(layer, name)
            for terms in pl_module.modules():
                if isinstance(terms, Terms):
                    terms.ends_with_one_sample = world_size() == 1  # otherwise those of all processes are compared
        if math.isfinite(trainer.num_training_batches):
            detach(trainer, self)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell of a fit that had no batch; one that was finished before, or stopped by a callback, needs none."""
        loop = trainer.fit_loop
        if loop.epoch_loop.batch_progress.total.ready or trainer.should_stop:
            return
        for setting, value in (
            ("limit_train_batches", trainer.limit_train_batches),
            ("max_epochs", trainer.max_epochs),
            ("max_steps", trainer.max_steps),
        ):
            if value == 0:
                rank_zero_warn(f"{setting}={value}: nothing was trained, and no weight has changed")
                return
        raise UsageError(
            "the training loader is empty, so that nothing was trained: look for a filter that leaves no sample, or "
            "drop_last=True with a batch_size above the number of samples"
        )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the trainer to its former state."""
        detach(trainer, self)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the trainer after a failed fit, too."""
        detach(trainer, self)


def attach_loader_sizes(trainer: Trainer) -> None:
    """Add `LoaderSizes` to a trainer's callbacks in the `setup` of a fit, unless it is there."""
    if find_attached(trainer, LoaderSizes) is None:
        attach(trainer, LoaderSizes())


def is_synchronized(layer: nn.Module) -> bool:
    """Tell if a BatchNorm has its statistics of all processes."""
    return isinstance(layer, nn.SyncBatchNorm) and world_size() > 1


def last_sizes(trainer: Trainer) -> list[int]:
    """List the numbers of samples in the last batches of an epoch, of those training loaders that tell it."""
    found: list[int] = []
    for loader in _loaders(trainer.train_dataloader):
        if trainer.num_training_batches >= len(loader) and (size := last_size(loader)) is not None:
            found.append(size)
    return found


def last_size(loader: Any) -> int | None:
    """Give the number of samples in a loader's last batch; None if it cannot be known.

    A loader of any class may have it as an attribute ``last_batch_size``.

    Example:
        >>> last_size(DataLoader(range(7), batch_size=3)), last_size(DataLoader(range(7), batch_size=3, drop_last=True))
        (1, 3)
    """
    own = getattr(loader, "last_batch_size", None)
    if own is not None or not isinstance(loader, DataLoader):
        return own
    batches: Any = loader.batch_sampler
    with suppress(AttributeError, TypeError):  # samplers of other libraries
        count, size = len(batches.sampler), int(batches.batch_size)
        return size if batches.drop_last or count % size == 0 else count % size
    return None


def _loaders(loaders: Any) -> Iterator[Any]:
    """Yield the loaders of known length in a loader, a list or a mapping."""
    if isinstance(loaders, dict | list | tuple):
        for each in loaders.values() if isinstance(loaders, dict) else loaders:
            yield from _loaders(each)
        return
    with suppress(TypeError, NotImplementedError):
        if len(loaders) > 0:
            yield loaders


def _check_next_call(layer: nn.Module, name: str) -> None:
    handles: list[RemovableHandle] = []
    handles.append(layer.register_forward_pre_hook(partial(_check_channels, handles, name)))


def _check_channels(handles: list[RemovableHandle], name: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
    """Refuse a BatchNorm whose input has one value per channel for each sample."""
    handles.pop().remove()
    values = args[0] if args else None
    if layer.training and isinstance(values, Tensor) and values.dim() > 1 and values[0].numel() == values.shape[1]:
        raise UsageError(
            f"the last batch of an epoch has 1 sample, of which {name} ({type(layer).__name__}) has no statistics, as "
            f"its input has one value per channel: {MORE_SAMPLES}"
        )
