"""Every private name of Lightning that this package touches, each under a plain name.

Lightning promises nothing about these. `tests/core/test_lightning_contract.py` asserts each of them by name, so that a
release of Lightning that drops one fails there, and no other file of the package holds a private name of Lightning.

Names in capitals are attributes that are read or written at every training step, where a function would add a Python
call: the caller binds ``vars(owner)`` once and indexes it. Other names for steps are `attrgetter` and `methodcaller`
objects, which run without a Python call of their own.
"""

# pyright: reportPrivateUsage=false, reportAttributeAccessIssue=false
from __future__ import annotations

import csv
from collections.abc import Callable
from operator import attrgetter, methodcaller
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult, _AutomaticOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection, _ResultMetric
from typing_extensions import override

__all__ = [
    "BATCHES_THAT_STEPPED",
    "CURRENT_HOOK",
    "FIRST_ITERATION",
    "INSTANTIATOR",
    "AppendingWriter",
    "AutomaticOptimization",
    "Closure",
    "ClosureResult",
    "PrefetchDataFetcher",
    "ResultCollection",
    "ResultMetric",
    "TrainingEpochLoop",
    "active_results",
    "attached_trainer",
    "average_model",
    "batches_that_stepped",
    "before_batch_transfer",
    "broadcast_sigterm",
    "count_epoch_as_started",
    "data_fetcher",
    "epoch_results",
    "epoch_save_is_unset",
    "has_model_averager",
    "is_restarting",
    "is_validation_due",
    "logged_names",
    "logger_connector",
    "num_ready_batches_reached",
    "replaces_files",
    "restore_sigterm_broadcast",
    "save_interval",
    "saves_at_epoch_end",
    "saves_by_time",
    "set_csv_writer",
    "set_epoch_save",
    "should_accumulate",
    "signal_connector",
    "silence_sigterm_broadcast",
    "skip_save_on_exception",
    "skips_backward",
    "validate_at_train_start",
    "validates_by_time",
    "validates_in_this_epoch",
    "waits_for_all_gradients",
    "warn_once",
]

# ---- classes

TrainingEpochLoop = _TrainingEpochLoop
"""Runs one epoch of training, validation inside of it included."""
AutomaticOptimization = _AutomaticOptimization
"""Trains on one batch, as a part of the training epoch loop."""
PrefetchDataFetcher = _PrefetchDataFetcher
"""Takes batches from a loader, and looks one ahead where the loader has no length."""
ResultCollection = _ResultCollection
"""Holds all values that were logged in an epoch, by hook and name."""
ResultMetric = _ResultMetric
"""Holds one logged value."""

# ---- attributes of every step

CURRENT_HOOK = "_current_fx_name"
"""Of a LightningModule: the name of the hook that runs, from which ``self.log`` takes its defaults."""
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


def is_validation_due(trainer: Trainer) -> bool:
    """Tell if a validation follows the current batch, or has followed it; False where a time decides."""
    if validates_by_time(trainer) or data_fetcher(trainer) is None:
        return False
    return trainer.fit_loop.epoch_loop._should_check_val_fx(data_fetcher(trainer))


def num_ready_batches_reached(loop: TrainingEpochLoop) -> bool:
    """Tell if the current batch is the last of its epoch."""
    return loop._num_ready_batches_reached()


def broadcast_sigterm(loop: TrainingEpochLoop) -> Callable[[], None]:
    """Give the bound method that stops every process where one has received SIGTERM."""
    return loop._broadcast_sigterm_tensor


def silence_sigterm_broadcast(loop: TrainingEpochLoop) -> None:
    """Let the loop make no collective operation for SIGTERM at each batch: `StepFlag` has one for everything."""
    vars(loop)["_broadcast_sigterm_tensor"] = lambda: None


def restore_sigterm_broadcast(loop: TrainingEpochLoop) -> None:
    """Undo `silence_sigterm_broadcast`, if it was called."""
    vars(loop).pop("_broadcast_sigterm_tensor", None)


def epoch_results(loop: TrainingEpochLoop) -> ResultCollection:
    """Give the values that were logged in this training epoch."""
    return loop._results


def warn_once(loop: TrainingEpochLoop, message: str) -> None:
    """Warn as the loop does: each message once a fit."""
    loop._warning_cache.warn(message)


def skips_backward(optimization: AutomaticOptimization) -> bool:
    """Tell if backward is switched off: `StochasticWeightAveraging` does that in its last, extra epoch."""
    return optimization._skip_backward


# ---- the trainer


def logger_connector(trainer: Trainer) -> Any:
    """Give the object that collects logged values and hands them to the loggers."""
    return trainer._logger_connector


def signal_connector(trainer: Trainer) -> Any:
    """Give the object whose ``received_sigterm`` tells if the process is to stop."""
    return trainer._signal_connector


def data_fetcher(trainer: Trainer) -> Any:
    """Give the object that the training loop takes its batches from."""
    return trainer.fit_loop._data_fetcher


def validates_by_time(trainer: Trainer) -> bool:
    """Tell if `val_check_interval` is a time."""
    return trainer._val_check_time_interval is not None


def active_results(trainer: Trainer) -> dict[str, Any]:
    """Give the values that were logged in the active loop, by hook and name; none outside of a loop."""
    return trainer._results or {}


def logged_names(trainer: Trainer) -> set[str]:
    """Give the names of the values that were logged in the active loop, with those that Lightning derives from them."""
    names = {metric.meta.name for metric in active_results(trainer).values() if not metric.has_reset}
    return names | {f"{name}_{kind}" for name in names for kind in ("step", "epoch")}


def validate_at_train_start(trainer: Trainer) -> None:
    """Run a validation before the first training step, from `on_train_start`: Lightning skips one due at a resume."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False  # else it would resume the validation of the checkpoint
    trainer.validating = True
    loop.run()
    trainer.training = True


def count_epoch_as_started(trainer: Trainer) -> None:
    """Count the current epoch as started, which Lightning omits after a resume from the end of the epoch before."""
    trainer.fit_loop.epoch_progress.increment_ready()
    trainer.fit_loop.epoch_progress.increment_started()


# ---- the LightningModule

INSTANTIATOR = "_instantiator"
"""A key of a module's hyper-parameters; it is there if the command line has built the module."""
attached_trainer: Callable[[LightningModule], Trainer | None] = attrgetter("_trainer")
"""Give a module's trainer; None outside of a run, where ``module.trainer`` raises."""


def before_batch_transfer(module: LightningModule) -> Callable[..., Any]:
    """Give the bound method that Lightning calls on a batch before it moves it to the module's device."""
    return module._on_before_batch_transfer


# ---- strategies, callbacks and loggers


def waits_for_all_gradients(strategy: Any) -> bool:
    """Tell if DistributedDataParallel expects a gradient of every parameter from every backward pass."""
    return isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("find_unused_parameters")


def has_model_averager(strategy: Any) -> bool:
    """Tell if a DDPStrategy averages the processes' weights now and then (post-local SGD)."""
    return isinstance(strategy, DDPStrategy) and strategy._model_averager is not None


def save_interval(callback: ModelCheckpoint) -> int:
    """Give `every_n_train_steps`; 0 where steps do not decide when to save."""
    return callback._every_n_train_steps


def replaces_files(callback: ModelCheckpoint) -> bool:
    """Tell if `enable_version_counter` is off, so that a file of the same name is replaced."""
    return not callback._enable_version_counter


def saves_by_time(callback: ModelCheckpoint) -> bool:
    """Tell if `train_time_interval` is set."""
    return callback._train_time_interval is not None


def epoch_save_is_unset(callback: ModelCheckpoint) -> bool:
    """Tell if ``save_on_train_epoch_end`` is left to Lightning."""
    return callback._save_on_train_epoch_end is None


def set_epoch_save(callback: ModelCheckpoint, value: bool | None) -> None:
    """Set ``save_on_train_epoch_end``; None leaves it to Lightning."""
    callback._save_on_train_epoch_end = value


def saves_at_epoch_end(callback: ModelCheckpoint, trainer: Trainer) -> bool:
    """Tell if a checkpoint of epochs is saved at the end of the current one, and not at a validation."""
    every = callback._every_n_epochs
    return every > 0 and (trainer.current_epoch + 1) % every == 0 and callback._should_save_on_train_epoch_end(trainer)


def skip_save_on_exception(callback: ModelCheckpoint, trainer: Trainer) -> None:
    """Let `save_on_exception` save nothing for the current step."""
    callback._last_global_step_saved = trainer.global_step


def average_model(callback: WeightAveraging) -> Any:
    """Give the averaged copy of the module, an `AveragedModel`; None before the callback's `setup`."""
    return callback._average_model


class AppendingWriter(ExperimentWriter):
    """Writer of ``metrics.csv`` that keeps the file of an earlier run, which Lightning's deletes with a warning."""

    has_rows: bool
    """The file was there when the writer was made."""

    @override
    def _check_log_dir_exists(self) -> None:
        self.has_rows = Path(self.metrics_file_path).is_file()

    @override
    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with Path(self.metrics_file_path).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        self.write_all(fieldnames, rows)

    def write_all(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        """Replace the file, where Lightning would write it in place, and a kill would lose its rows."""
        raise NotImplementedError


def set_csv_writer(logger: CSVLogger, writer: ExperimentWriter) -> None:
    """Let a CSV logger save and finalize this writer in place of one that it would build."""
    logger._experiment = writer
