"""A validation that was due, or had begun, when a checkpoint was written is run at the resume, and logged the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from tests import toys
from tests.run_rows import Result, fit, same
from tests.schemes.online.test_mutual import mutual

pytestmark = pytest.mark.filterwarnings("ignore:.*(save_last|ckpt_path|exists and is not empty)")

RUNS: dict[str, dict[str, Any]] = {
    "once an epoch": {},
    "twice an epoch": {"val_check_interval": 2},
    "every second epoch": {"check_val_every_n_epoch": 2},
    "by steps": {"max_epochs": -1, "max_steps": 11, "val_check_interval": 2},
    "accumulated": {"accumulate_grad_batches": 2},
}


class Fails(Callback):
    """Raises when a hook is called for the given time."""

    def __init__(self, hook: str, call: int) -> None:
        self.left = call
        setattr(self, hook, self.count)

    def count(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("injected")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Each uninterrupted run, made when it is asked for."""
    made: dict[str, Result] = {}

    def run(name: str) -> Result:
        if name not in made:
            made[name] = fit(tmp_path_factory.mktemp("whole"), toys.offline(), **RUNS[name])
        return made[name]

    return run


INTERRUPTED = {
    "once an epoch": "on_validation_batch_end",
    "twice an epoch": "on_validation_end",
    "every second epoch": "on_validation_start",
    "by steps": "on_validation_epoch_end",
    "accumulated": "on_validation_batch_start",
}


@pytest.mark.parametrize(("name", "hook"), INTERRUPTED.items())
def test_an_interrupted_validation_is_run_again(name, hook, whole, tmp_path):
    with pytest.raises(RuntimeError, match="injected"):
        fit(tmp_path, toys.offline(), Fails(hook, 1), **RUNS[name])
    best = tmp_path / "best.ckpt"
    assert not best.exists()
    resumed = fit(tmp_path, toys.offline(), ckpt_path=tmp_path / "last.ckpt", **RUNS[name])
    assert same(resumed, whole(name))
    assert best.exists()


class KeepsRows(ModelCheckpoint):
    """Copies the rows of the moment beside each checkpoint."""

    def _save_checkpoint(self, trainer: Any, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        rows = Path(trainer.default_root_dir) / "metrics.csv"
        if rows.exists():
            shutil.copy(rows, f"{filepath}.csv")


def without_the_row_of_a_step(rows: list[dict[str, str]], step: int) -> list[dict[str, str]]:
    """A step is logged after its checkpoint is written."""
    return [row for row in rows if "train/loss" not in row or row["step"] != str(step)]


@pytest.mark.parametrize("name", ["once an epoch", "twice an epoch", "by steps"])
def test_a_validation_that_follows_a_checkpoint_of_a_step_is_run_at_the_resume(name, whole, tmp_path):
    every_step = KeepsRows(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    fit(tmp_path, toys.offline(), every_step, **RUNS[name])
    folder = tmp_path / "resumed"
    folder.mkdir()
    shutil.copy(tmp_path / "step=4.ckpt.csv", folder / "metrics.csv")
    saved = tmp_path / "step=4.ckpt"
    resumed = fit(folder, toys.offline(), ModelCheckpoint(folder), ckpt_path=saved, **RUNS[name])
    assert resumed.rows == without_the_row_of_a_step(whole(name).rows, 3)
    assert toys.same(resumed.weights, whole(name).weights)


def test_the_network_that_was_best_is_looked_for_once(tmp_path):
    """`MutualLearning` validates at the start of a resumed fit itself, where nothing else would."""
    every_step = KeepsRows(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)
    truth = fit(tmp_path, mutual(deploy="best"), every_step)
    folder = tmp_path / "resumed"
    folder.mkdir()
    shutil.copy(tmp_path / "step=4.ckpt.csv", folder / "metrics.csv")
    resumed = fit(folder, mutual(deploy="best"), ModelCheckpoint(folder), ckpt_path=tmp_path / "step=4.ckpt")
    assert toys.same(resumed.weights, truth.weights)
    assert resumed.rows == without_the_row_of_a_step(truth.rows, 3)
