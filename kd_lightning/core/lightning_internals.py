"""Every private name of Lightning that this package touches, each under a plain name.

Lightning promises nothing about these. `tests/test_lightning_contract.py` asserts each of them by name, so that a
release of Lightning that drops one fails there, and no other file of the package holds a private name of Lightning.

Names in capitals are attributes that are read or written at every training step, where a function would add a Python
call: the caller binds ``vars(owner)`` once and indexes it. Other names for steps are `attrgetter` and `methodcaller`
objects, which run without a Python call of their own.
"""

# pyright: reportPrivateUsage=false, reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter, methodcaller
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult, _AutomaticOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection, _ResultMetric

__all__ = [
    "BATCHES_THAT_STEPPED",
    "CURRENT_HOOK",
    "FIRST_ITERATION",
    "AutomaticOptimization",
    "Closure",
    "ClosureResult",
    "PrefetchDataFetcher",
    "ResultCollection",
    "ResultMetric",
    "TrainingEpochLoop",
    "batches_that_stepped",
    "before_batch_transfer",
    "broadcast_sigterm",
    "data_fetcher",
    "epoch_results",
    "has_model_averager",
    "is_restarting",
    "logger_connector",
    "num_ready_batches_reached",
    "save_interval",
    "saves_by_time",
    "should_accumulate",
    "signal_connector",
    "skips_backward",
    "validates_by_time",
    "validates_in_this_epoch",
    "warn_once",
]

# ---- classes

TrainingEpochLoop = _TrainingEpochLoop
"""One epoch of training, validation inside of it included."""
AutomaticOptimization = _AutomaticOptimization
"""The part of a training epoch loop that trains on one batch."""
PrefetchDataFetcher = _PrefetchDataFetcher
"""Takes batches from a loader, and looks one ahead where the loader has no length."""
ResultCollection = _ResultCollection
"""All values that were logged in an epoch, by hook and name."""
ResultMetric = _ResultMetric
"""One logged value."""

# ---- attributes of every step

CURRENT_HOOK = "_current_fx_name"
"""Of a LightningModule: the name of the hook that runs, by which ``self.log`` decides what a value is."""
BATCHES_THAT_STEPPED = "_batches_that_stepped"
"""Of a training epoch loop: the step number of the loggers, one for each optimizer step."""
FIRST_ITERATION = "_first_loop_iter"
"""Of the logger connector: None before an epoch's first batch, True in it and False after it."""

# ---- the training epoch loop

batches_that_stepped: Callable[[Trainer], int] = attrgetter(f"fit_loop.epoch_loop.{BATCHES_THAT_STEPPED}")
"""Give the step number of the loggers."""
should_accumulate: Callable[[Any], bool] = methodcaller("_should_accumulate")
"""Tell, of a fit loop or a training epoch loop, if this batch's gradients wait for those of further batches."""


def is_restarting(loop: TrainingEpochLoop) -> bool:
    """Tell if the next step is the first after a resume, or follows a validation that the resume has skipped."""
    return loop._restarting or loop._skip_next_val


def validates_in_this_epoch(loop: TrainingEpochLoop) -> bool:
    """Tell if `check_val_every_n_epoch` allows validation in the current epoch."""
    return loop._should_check_val_epoch()


def num_ready_batches_reached(loop: TrainingEpochLoop) -> bool:
    """Tell if the current batch is the last of its epoch."""
    return loop._num_ready_batches_reached()


def broadcast_sigterm(loop: TrainingEpochLoop) -> Callable[[], None]:
    """Give the bound method that stops every process where one has received SIGTERM."""
    return loop._broadcast_sigterm_tensor


def warn_once(loop: TrainingEpochLoop, message: str) -> None:
    """Warn as the loop does: each message once a fit."""
    loop._warning_cache.warn(message)


def skips_backward(optimization: AutomaticOptimization) -> bool:
    """Tell if backward is switched off: `StochasticWeightAveraging` does that in its last, extra epoch."""
    return optimization._skip_backward


# ---- the trainer


def logger_connector(trainer: Trainer) -> Any:
    """Give the object that collects what is logged and hands it to the loggers."""
    return trainer._logger_connector


def signal_connector(trainer: Trainer) -> Any:
    """Give the object whose ``received_sigterm`` tells if the process is to stop."""
    return trainer._signal_connector


def epoch_results(loop: TrainingEpochLoop) -> ResultCollection:
    """Give the values that were logged in this training epoch."""
    return loop._results


def data_fetcher(trainer: Trainer) -> Any:
    """Give the object that the training loop takes its batches from."""
    return trainer.fit_loop._data_fetcher


def validates_by_time(trainer: Trainer) -> bool:
    """Tell if `val_check_interval` is a time."""
    return trainer._val_check_time_interval is not None


# ---- others


def before_batch_transfer(module: LightningModule) -> Callable[..., Any]:
    """Give the bound method that Lightning calls on a batch before it moves it to the module's device."""
    return module._on_before_batch_transfer


def has_model_averager(strategy: Any) -> bool:
    """Tell if a DDPStrategy averages the processes' weights now and then (post-local SGD)."""
    return getattr(strategy, "_model_averager", None) is not None


def save_interval(callback: ModelCheckpoint) -> int:
    """Give `every_n_train_steps`; 0 where steps do not decide when to save."""
    return callback._every_n_train_steps


def saves_by_time(callback: ModelCheckpoint) -> bool:
    """Tell if `train_time_interval` is set."""
    return callback._train_time_interval is not None
