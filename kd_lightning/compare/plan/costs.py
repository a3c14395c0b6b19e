"""The estimated duration of a run, from a few steps of the built learner."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from kd_lightning.cli.engine import CLI, build
from kd_lightning.cli.log_filters import expected_messages_hidden
from kd_lightning.compare.measure.network_stats import measure_costs, milliseconds
from kd_lightning.compare.measure.subject import learner_of
from kd_lightning.compare.plan.artifacts import ProfileResult
from kd_lightning.core.learner import Learner
from kd_lightning.core.traits import steps_are_alike
from kd_lightning.schemes.frozen_teacher import FrozenTeacher
from kd_lightning.speed.teacher_cache import TeacherCache

START_SECONDS = 2.0  # to build a run, to test it and to write its files
VALIDATION = 1.1  # factor for validation, over the steps alone
STEPS = 8


class UnknownDuration(Exception):
    """The duration of a run does not follow from a few of its steps."""


class StepTimer(Callback):
    """Times the first steps of a fit, then stops it.

    Args:
        steps: The number of steps to time.
    """

    def __init__(self, steps: int = STEPS) -> None:
        self.steps, self.total, self.batch = steps, math.inf, None
        self.moments: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the number of batches of the whole fit."""
        self.total = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Store the time, and stop after the last step to time."""
        self.batch = batch
        self.moments.append(perf_counter())
        trainer.should_stop = trainer.should_stop or len(self.moments) > self.steps

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the time of the end, for a fit of few steps."""
        self.moments.append(perf_counter())

    def seconds(self) -> float:
        """Return the median duration of a step, without the first two, which warm up, if there are others."""
        durations = [end - start for start, end in zip(self.moments, self.moments[1:], strict=False)]
        return median(durations[2:] or durations)


def estimate_seconds(run: CLI) -> float:
    """Estimate how long a run takes, by fitting its learner for a few steps.

    A teacher with a cache is counted once for each training row, any other teacher at each step.

    Args:
        run: The built run, whose learner is changed by the steps.

    Raises:
        UnknownDuration: A few steps do not tell: they differ, or the fit has no fixed end.
    """
    learner = cast("Learner", run.model)
    if not steps_are_alike(learner):
        raise UnknownDuration(f"steps of {type(learner).__name__} differ (steps_are_alike)")
    trainer, timer = run.trainer, StepTimer()
    callbacks = cast("list[Callback]", trainer.callbacks)  # pyright: ignore[reportAttributeAccessIssue]
    is_cached = any(isinstance(callback, TeacherCache) for callback in callbacks)
    callbacks[:] = [callback for callback in callbacks if not isinstance(callback, TeacherCache)]
    callbacks.append(timer)
    run.run()
    if math.isinf(timer.total):
        raise UnknownDuration("the fit has neither max_epochs nor max_steps")
    step = timer.seconds()
    total = timer.total * step * VALIDATION
    if is_cached and isinstance(learner, FrozenTeacher):
        learner.to(trainer.strategy.root_device)
        batch = learner.split_batch(timer.batch)
        teacher = milliseconds(lambda: learner.run_teacher(batch)) / 1000
        total += teacher * (_rows_in_batches(run.datamodule, learner, timer.batch) - timer.total * VALIDATION)
    return START_SECONDS + max(total, 0.0)


def profile_run(path: Path, measure_network: bool, trains: bool = True, student: str | None = None) -> ProfileResult:
    """Build a run, measure its student on a first batch, and estimate how long the run takes.

    Args:
        path: The configuration file.
        measure_network: True to measure the costs of the student as well.
        trains: False for a run that only evaluates weights that were trained elsewhere.
        student: Dotted name of the network in a module that is no learner.

    Raises:
        Exception: The run cannot be built or started, for whichever reason.
    """
    with expected_messages_hidden():
        run = build(["--config", str(path)])
        learner = learner_of(run.model, student)
        stats = measure_costs(learner.student, _first_inputs(run, learner)) if measure_network and learner else None
        try:
            seconds, reason = estimate_seconds(run) if trains else START_SECONDS, ""
        except UnknownDuration as unknown:
            seconds, reason = None, str(unknown)
    return ProfileResult(seconds, reason, stats)


def _rows_in_batches(data: Any, learner: Learner, batch: Any) -> float:
    """Count the training rows, in batches of the size that is trained on."""
    rows = cast("Iterable[Any]", data.train_rows())
    counted = sum(len(learner.split_batch(each).labels["index"]) for each in rows)
    return counted / len(learner.split_batch(batch).labels["index"])


def _first_inputs(run: CLI, learner: Learner) -> Any:
    """The student's inputs of a first training batch, on the CPU if they are one tensor."""
    data = run.datamodule or run.model
    data.prepare_data()
    data.setup("fit")
    batch, _, _ = next(iter(CombinedLoader(data.train_dataloader())))
    inputs = learner.split_batch(batch).student
    return inputs.cpu() if isinstance(inputs, Tensor) else inputs
