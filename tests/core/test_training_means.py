"""Means of the training losses are there for monitors in every epoch, and files are ranked by the weights they hold."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from kd_lightning import OfflineDistiller, Term
from kd_lightning.callbacks import FastLoop
from kd_lightning.losses import KDLoss
from tests import found, ranks, toys
from tests.callbacks import drop_in

CASES = found.cases()
BATCHES = 8


class Steps(Callback):
    """The training values of each step, and those that monitors find at the end of each epoch."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.epochs: list[dict[str, float]] = []
        self.validations: dict[int, float] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps.append(training(trainer.logged_metrics))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if "val_loss" in trainer.callback_metrics:
            self.validations[trainer.global_step] = float(trainer.callback_metrics["val_loss"])

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.epochs.append(training(trainer.callback_metrics))


class Losses(Callback):
    """The loss of each batch, whatever is logged."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        self.found.append(loss.item())


def training(metrics: Any) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if name.startswith("train/")}


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def offline(seed: int = 1) -> OfflineDistiller:
    terms = toys.terms() | {"idle": Term(KDLoss(2.0), weight=0.0)}
    return OfflineDistiller(toys.network(seed=seed), toys.network(width=16, seed=2), terms)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in CASES])
def test_every_scheme_has_the_means_of_an_epoch(name, tmp_path):
    case, kept = CASES[name](), Steps()
    toys.trainer(tmp_path, *case.callbacks, kept, max_epochs=1).fit(case.learner, (case.data or toys.data)())
    names = {f"train/{term}" for term in case.learner.terms} | {"train/loss"}
    assert names <= kept.steps[0].keys() == kept.epochs[0].keys()
    for value in kept.epochs[0]:
        assert kept.epochs[0][value] == pytest.approx(mean([step[value] for step in kept.steps]), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("fast", [True, False])
def test_epochs_shorter_than_the_interval_of_logs_have_them(fast, tmp_path):
    losses, stop = Losses(), EarlyStopping("train/loss", patience=9, check_on_train_epoch_end=True)
    run = toys.trainer(tmp_path, FastLoop(fast), losses, stop, max_epochs=2, log_every_n_steps=50)
    run.fit(offline(), toys.data())
    assert float(run.callback_metrics["train/loss"]) == pytest.approx(mean(losses.found[4:]), rel=1e-6)
    assert training(run.callback_metrics).keys() == {"train/loss", "train/task", "train/kd", "train/idle"}
    assert float(stop.best_score) == pytest.approx(min(mean(losses.found[:4]), mean(losses.found[4:])), rel=1e-6)


def test_the_drop_in_has_those_of_its_terms(tmp_path):
    one, two = drop_in.Theirs(), drop_in.distillation()
    run = drop_in.fit(one, two, EarlyStopping("train/hint"), folder=tmp_path, log_every_n_steps=50)
    assert training(run.callback_metrics).keys() == {"train/kd", "train/hint"}
    assert EarlyStopping not in {type(each) for each in toys.trainer(tmp_path).callbacks}
    assert not [each for each in run.callbacks if "Means" in type(each).__name__ or "Monitors" in type(each).__name__]


def ranked(callback: ModelCheckpoint) -> dict[int, float]:
    """The score of each file by its step."""
    found = {int(re.findall(r"step=(\d+)", path)[0]): float(score) for path, score in callback.best_k_models.items()}
    assert len(found) == len(callback.best_k_models)
    return found


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("log", [2, 50])
def test_a_file_of_a_step_is_ranked_by_the_mean_up_to_it(log, fast, tmp_path):
    losses = Losses()
    saver = ModelCheckpoint(tmp_path, "{step}", monitor="train/loss", every_n_train_steps=3, save_top_k=-1)
    fits = {"max_epochs": 2, "log_every_n_steps": log, "limit_val_batches": 0}
    toys.trainer(tmp_path, FastLoop(fast), losses, saver, **fits).fit(offline(), toys.data(train_size=16 * BATCHES))
    truth = {step: mean(losses.found[(step - 1) // BATCHES * BATCHES : step]) for step in range(3, 2 * BATCHES + 1, 3)}
    assert ranked(saver) == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("interval", [2, BATCHES])
def test_a_file_saved_after_a_validation_is_ranked_by_the_mean_up_to_it(interval, tmp_path):
    losses = Losses()
    saver = ModelCheckpoint(tmp_path, "{step}", monitor="train/loss", save_top_k=-1, save_on_train_epoch_end=False)
    run = toys.trainer(tmp_path, losses, saver, max_epochs=1, log_every_n_steps=3, val_check_interval=interval)
    run.fit(offline(), toys.data(train_size=16 * BATCHES, val_size=16))
    steps = range(interval, BATCHES + 1, interval)
    assert ranked(saver) == pytest.approx({step: mean(losses.found[:step]) for step in steps}, rel=1e-6)


@pytest.mark.parametrize("interval", [2, 1.0])
@pytest.mark.parametrize("every", [2, 4])
def test_a_file_of_a_validated_step_is_ranked_by_that_validation(every, interval, tmp_path):
    kept, callback = Steps(), drop_in.distillation()
    saver = ModelCheckpoint(tmp_path, "{step}", monitor="val_loss", every_n_train_steps=every, save_top_k=-1)
    data: Any = {"data": drop_in.batches(4), "val": toys.Loader(drop_in.batches(2))}
    fits = {"max_epochs": 3, "val_check_interval": interval, "num_sanity_val_steps": 0}
    if interval == 1.0 and every == 2:
        with pytest.warns(UserWarning, match="every_n_train_steps=2\\) saves at steps without a validation"):
            drop_in.fit(drop_in.Theirs(), callback, kept, saver, folder=tmp_path, **data, **fits)
    else:
        drop_in.fit(drop_in.Theirs(), callback, kept, saver, folder=tmp_path, **data, **fits)
    scores = ranked(saver)
    assert {step for step in scores if step in kept.validations} == set(range(every, 13, every)) & set(kept.validations)
    assert all(scores[step] == kept.validations[step] for step in scores if step in kept.validations)


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key:UserWarning")  # in the first epoch
def test_an_epoch_without_a_validation_that_ranks_by_one_is_warned_of(tmp_path):
    saver = ModelCheckpoint(tmp_path, monitor="val_loss", save_on_train_epoch_end=True)
    data: Any = {"val": toys.Loader(drop_in.batches(2)), "check_val_every_n_epoch": 2, "num_sanity_val_steps": 0}
    with pytest.warns(UserWarning, match="'val_loss', save_on_train_epoch_end=True\\) saves at steps without a valid"):
        drop_in.fit(drop_in.Theirs(), drop_in.distillation(), saver, folder=tmp_path, max_epochs=3, **data)


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
@pytest.mark.parametrize("name", ["offline", "drop-in"])
def test_a_mean_after_a_resume_is_that_of_the_undisturbed_run(name, tmp_path):
    def run(folder: Path, **changes: Any) -> dict[str, float]:
        saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        checkpoint = changes.pop("ckpt_path", None)
        fits = {"max_epochs": 2, "log_every_n_steps": 50, "limit_val_batches": 0} | changes
        if name == "offline":
            trainer = toys.trainer(folder, saver, **fits)
            trainer.fit(offline(), toys.data(), ckpt_path=checkpoint)
        else:
            trainer = toys.trainer(folder, saver, drop_in.distillation(), **fits)
            trainer.fit(drop_in.Theirs(), toys.Loader(drop_in.batches()), ckpt_path=checkpoint)
        return training(trainer.callback_metrics)

    truth = run(tmp_path / "whole")
    for step in (3, 4, 7) if name == "offline" else (4,):  # the other's loader begins again
        assert run(tmp_path / f"{step}", ckpt_path=tmp_path / "whole" / f"step={step}.ckpt") == truth


class Metrics(Callback):
    """What each rank's monitors find."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.found = training(trainer.callback_metrics)


def on_two_ranks(folder: Path, ranks: int) -> dict[str, float]:
    kept, learner = Metrics(), found.without_cross_sample_layers(offline())
    saver = ModelCheckpoint(folder, "{step}", monitor="train/loss", every_n_train_steps=1, save_top_k=-1)
    run = toys.trainer(folder, kept, saver, max_epochs=1, log_every_n_steps=50, **toys.strategy(learner, ranks))
    run.fit(learner, toys.data(batch_size=32 // ranks, augmentation=None))
    again = toys.trainer(folder, kept, max_epochs=1, log_every_n_steps=50, **toys.strategy(learner, ranks))
    before, checkpoint = kept.found, folder / "step=1.ckpt"
    again.fit(
        found.without_cross_sample_layers(offline()),
        toys.data(batch_size=32 // ranks, augmentation=None),
        ckpt_path=checkpoint,
    )
    assert kept.found == before
    return before | {f"file {step}": score for step, score in ranked(saver).items()}


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
@ranks.two_processes
def test_two_processes_have_the_means_of_one(tmp_path):
    ranks.run_two("tests.core.test_training_means", tmp_path)
    first, second = (torch.load(tmp_path / f"means-{rank}.pt") for rank in range(2))
    assert first == second
    assert first == pytest.approx(on_two_ranks(tmp_path / "one", 1), rel=1e-5)


if __name__ == "__main__":
    import os
    import sys

    torch.save(on_two_ranks(Path(sys.argv[1]), 2), Path(sys.argv[1]) / f"means-{os.environ['LOCAL_RANK']}.pt")
