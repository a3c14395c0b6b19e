"""The values that the parser and Lightning accept in silence, or refuse with a traceback."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from kd_lightning.cli.config_checks import config_faults, non_finite_settings, trainer_faults

REFUSED: list[tuple[str, Any]] = [
    *[("accumulate_grad_batches", value) for value in (0, -1)],
    *[("val_check_interval", value) for value in (0, 0.0, -1, 1.5, -0.5, math.nan)],
    *[("check_val_every_n_epoch", value) for value in (0, -1)],
    *[("max_epochs", 0), ("max_steps", 0), ("limit_train_batches", 0), ("limit_train_batches", 0.0)],
    *[(f"limit_{name}_batches", value) for name in ("train", "val", "test", "predict") for value in (-1, -0.1, 1.1)],
    *[("overfit_batches", value) for value in (-1, 2.5)],
    *[("gradient_clip_val", value) for value in (-1, -0.1, math.inf, math.nan)],
    *[("log_every_n_steps", -1), ("num_nodes", 0), ("min_epochs", 0), ("min_steps", -1), ("fast_dev_run", -1)],
    *[("reload_dataloaders_every_n_epochs", -1), ("num_sanity_val_steps", -2), ("max_time", "00:00:00:00")],
    *[("devices", value) for value in (0, -2, 99999, "99999", "0")],
]
TAKEN: list[tuple[str, Any]] = [
    *[("accumulate_grad_batches", 1), ("accumulate_grad_batches", 8), ("max_epochs", -1), ("max_steps", -1)],
    *[("val_check_interval", value) for value in (None, 1, 100, 0.25, 1.0, "00:00:30:00", {"minutes": 5})],
    *[("limit_train_batches", value) for value in (None, 1, 0.5, 1.0)],
    *[("limit_val_batches", value) for value in (0, 0.0, 3)],
    *[("gradient_clip_val", value) for value in (None, 0, 0.5, 1)],
    *[("log_every_n_steps", 0), ("check_val_every_n_epoch", None), ("fast_dev_run", True), ("fast_dev_run", False)],
    *[("num_sanity_val_steps", -1), ("overfit_batches", 0.0), ("max_time", None), ("max_time", "00:00:00:01")],
    *[("devices", value) for value in ("auto", 1, 2, "2", -1, "-1", [0, 1], "0,1")],
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_a_number_that_cannot_work_is_refused_with_its_value_and_a_remedy(name: str, value: Any):
    ((field, problem),) = trainer_faults({name: value, "accelerator": "cpu"}, fits=True)
    assert field == name
    assert problem.startswith(f"{value} ")
    assert ": set " in problem


@pytest.mark.parametrize(("name", "value"), TAKEN)
def test_a_number_that_works_is_taken(name: str, value: Any):
    assert not list(trainer_faults({name: value, "accelerator": "cpu"}, fits=True))


def test_an_evaluation_needs_no_training():
    nothing = {"max_epochs": 0, "max_steps": 0, "limit_train_batches": 0, "max_time": "00:00:00:00"}
    assert not list(trainer_faults(nothing, fits=False))
    assert len(list(trainer_faults(nothing, fits=True))) == len(nothing)


@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "auto"])
def test_devices_are_those_of_the_machine(accelerator: str, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert not list(trainer_faults({"devices": 2, "accelerator": accelerator}, fits=True))
    ((_, problem),) = trainer_faults({"devices": 3, "accelerator": accelerator}, fits=True)
    assert problem == "3 are more than the 2 GPUs of this machine: set at most 2"
    assert not list(trainer_faults({"devices": 3, "accelerator": "cpu"}, fits=True))


def test_optimizers_have_finite_numbers():
    config = {
        "model": {
            "init_args": {
                "optimizer": {"class_path": "Adam", "init_args": {"lr": math.inf, "betas": [0.9, math.nan]}},
                "terms": {"kd": {"weight": math.nan, "cap": math.inf}},
            }
        }
    }
    assert [field for field, _ in non_finite_settings(config)] == [
        "model.optimizer.lr",
        "model.optimizer.betas.1",
    ]


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_is_one_of_numpys(seed: int):
    class Parsed(dict):
        pass

    class Trainer:
        pass

    config = Parsed({"seed_everything": seed, "trainer.default_root_dir": "run", "trainer": Trainer()})
    assert list(config_faults(config, [], "fit")) == [("seed_everything", f"{seed} must lie between 0 and {2**32 - 1}")]
