"""Trainers that the fast loop supports, and the reasons why it leaves the others to Lightning's loop."""

# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import DoublePrecision, MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from kd_lightning.core.lightning_internals import (
    AutomaticOptimization,
    PrefetchDataFetcher,
    TrainingEpochLoop,
    data_fetcher,
    has_model_averager,
    validates_by_time,
)
from kd_lightning.speed.fast_loop.epoch import FastEpoch
from kd_lightning.speed.fast_loop.hooks import overridden

TESTED_LIGHTNING = ("2.6.6",)
"""Releases of Lightning with which the fast loop was found to equal Lightning's own, bit for bit."""
REPLACED_HOOKS = (
    "optimizer_step",
    "backward",
    "optimizer_zero_grad",
    "configure_gradient_clipping",
    "lr_scheduler_step",
)
"""Hooks of a LightningModule whose defaults the fast loop has written out: it supports no module that overrides one."""


def why_unsupported(trainer: Trainer) -> str | None:
    """Find the first reason why Lightning's own loop has to run every step; None if there is none.

    Args:
        trainer: At the start of training, with everything set up.
    """
    module, precision, strategy = trainer.lightning_module, trainer.precision_plugin, trainer.strategy
    loop: Any = trainer.fit_loop.epoch_loop
    if lightning.__version__ not in TESTED_LIGHTNING:
        return f"lightning {lightning.__version__} is not a tested release (tested: {', '.join(TESTED_LIGHTNING)})"
    if not module.automatic_optimization or len(trainer.optimizers) != 1:
        return f"{type(module).__name__} has manual optimization or several optimizers"
    if name := overridden(module, REPLACED_HOOKS):
        return f"{type(module).__name__} overrides {name}"
    if type(strategy) not in (SingleDeviceStrategy, DDPStrategy) or has_model_averager(strategy):
        return f"the strategy is {type(strategy).__name__}"
    if type(precision) not in (Precision, DoublePrecision, MixedPrecision) or getattr(precision, "scaler", None):
        return f"the precision is {precision.precision}, by {type(precision).__name__}"
    if type(trainer.profiler) is not PassThroughProfiler:
        return f"{type(trainer.profiler).__name__} measures every part of a step"
    if type(data_fetcher(trainer)) is not PrefetchDataFetcher or trainer.num_training_batches == float("inf"):
        return "the number of batches in an epoch is not known"
    if type(loop) not in (TrainingEpochLoop, FastEpoch):
        return f"the loop is {type(loop).__name__}"
    if type(loop.automatic_optimization) is not AutomaticOptimization:
        return f"the optimization loop is {type(loop.automatic_optimization).__name__}"
    if any(config.reduce_on_plateau and config.interval == "step" for config in trainer.lr_scheduler_configs):
        return "a scheduler follows a metric at each step"
    if validates_by_time(trainer):
        return "val_check_interval is a time"
    if trainer.fast_dev_run:
        return "fast_dev_run logs every step"
    return None
