"""A callback that is used in a second fit, as in the folds of a cross-validation, does there what a new one does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from kd_lightning import callbacks as ours
from kd_lightning.callbacks import (
    ActivationStatistics,
    ChannelsLast,
    FastLoop,
    FaultTolerance,
    Linear,
    TeacherCache,
    TeacherFreezing,
    TemperatureSchedule,
)
from tests import found, toys

WITH_CALLBACKS = [name for name, build in found.cases().items() if build().callbacks]
OF_ANY_RUN: dict[str, Callable[[], Callback]] = {
    "TemperatureSchedule": lambda: TemperatureSchedule(Linear(8.0, 2.0, 6)),
    "TeacherFreezing": TeacherFreezing,
    "TeacherCache": TeacherCache,
    "FaultTolerance": FaultTolerance,
    "FastLoop": FastLoop,
    "ChannelsLast": ChannelsLast,
    "ActivationStatistics": lambda: ActivationStatistics(["4"]),
}


def fit(case: toys.Case, callbacks: Sequence[Callback], folder: Path) -> dict[str, Tensor]:
    run = toys.trainer(folder, *callbacks, max_epochs=3)
    run.fit(case.learner, (case.data or toys.data)())
    return toys.weights(case.learner)


@pytest.mark.parametrize("name", WITH_CALLBACKS)
def test_the_callbacks_of_a_scheme_do_the_same_in_a_second_fit(name, tmp_path):
    build = found.cases()[name]
    callbacks = build().callbacks
    first, second, fresh = build(), build(), build()
    once = fit(first, callbacks, tmp_path / "first")
    assert toys.same(fit(second, callbacks, tmp_path / "second"), once)
    assert toys.same(fit(fresh, fresh.callbacks, tmp_path / "fresh"), once)


@pytest.mark.parametrize("name", OF_ANY_RUN)
def test_a_callback_of_any_run_does_the_same_in_a_second_fit(name, tmp_path):
    def run(callback: Callback, folder: str) -> dict[str, Tensor]:
        torch.manual_seed(0)
        return fit(toys.Case(toys.offline(), data=lambda: toys.data(augmentation=None)), [callback], tmp_path / folder)

    callback = OF_ANY_RUN[name]()
    once = run(callback, "first")
    assert toys.same(run(callback, "second"), once)
    assert toys.same(run(OF_ANY_RUN[name](), "fresh"), once)


def test_every_callback_that_changes_a_run_is_tried():
    tried = {type(each).__name__ for name in WITH_CALLBACKS for each in found.cases()[name]().callbacks} | {*OF_ANY_RUN}
    every = {name for name in ours.__all__ if issubclass(getattr(ours, name), Callback)}
    bases = {"ScheduledCallback", "EvolvingTeacher"}
    loggers = {"AttentionMapsLogger", "SyntheticImagesLogger"}  # of images, which need a logger
    # the drop-in has test_distillation_folds.py, a compiler takes minutes, and every run here has ExactResume
    assert every - tried - bases - loggers == {"Distillation", "TorchCompile", "ExactResume"}
