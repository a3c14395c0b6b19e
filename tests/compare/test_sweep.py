"""A sweep chooses among the points of a grid on validation data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from small_plan import new_plan, write

from kd_lightning.__main__ import main
from kd_lightning.data.sources.mnist import MNIST
from kd_lightning.networks import MLP
from kd_lightning.weights import export_student

# Lightning's command line uses what jsonargparse has renamed, and optuna's journal is young
pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning", "ignore::optuna.exceptions.ExperimentalWarning"
)
RATE = "model.init_args.optimizer.init_args.lr"
LABELS_ALONE = {
    "model": {"init_args": {"optimizer": {"class_path": "torch.optim.Adam"}, "terms": {"kd": {"weight": 0.0}}}}
}


def sweep(folder: Path, grid: dict[str, Any], *options: str, variant: str = "both") -> int:
    export_student(MLP(2352, [32]), folder / "teacher.safetensors")
    plan = new_plan()
    group = plan["groups"]["digits"]
    group["variants"]["teacher"]["weights"] = "teacher.safetensors"
    group["variants"][variant] |= {"grid": grid, "overrides": LABELS_ALONE}
    group["seeds"] = [3]
    path = write(folder, plan)
    return main(["sweep", "--config", str(path), "--root", str(folder / "swept"), *options])


def test_every_point_is_tried_and_the_test_images_are_not_opened(tmp_path: Path, monkeypatch, capsys) -> None:
    def closed(self: MNIST) -> None:
        raise AssertionError("test images")

    monkeypatch.setattr(MNIST, "test", closed)
    assert sweep(tmp_path, {RATE: [1e-9, 0.01, 1e-8]}) == 0
    *tried, best, option = capsys.readouterr().out.splitlines()
    assert len(tried) == 3
    assert all("acc 0." in line and "over 1 seeds" in line for line in tried)
    assert best.startswith("Best on validation data: both terms, lr 0.01 (")
    assert option == f"  --{RATE} 0.01"
    assert sweep(tmp_path, {RATE: [1e-9, 0.01, 1e-8]}) == 0  # finished trials are not repeated
    assert capsys.readouterr().out.splitlines() == [best, option]


def test_fewer_trials_are_proposed(tmp_path: Path, capsys) -> None:
    grid = {RATE: [0.001, 0.01], "model.init_args.terms.kd.loss.init_args.temperature": [2.0, 4.0]}
    assert sweep(tmp_path, grid, "--trials", "2") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 1 + 2


@pytest.mark.parametrize(
    ("grid", "options", "message"),
    [
        ({RATE: [0.1]}, ["--trials", "0"], "--trials 0: at least one"),
        ({RATE: [0.1]}, ["--variant", "digits/bot"], "--variant digits/bot: has no grid; did you mean 'digits/both'?"),
        ({RATE: []}, [], "is [] and not a list of values"),
    ],
)
def test_a_mistake_costs_one_line(grid, options, message, tmp_path: Path, capsys) -> None:
    assert sweep(tmp_path, grid, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_without_optuna_the_package_to_install_is_named(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert sweep(tmp_path, {RATE: [0.1]}) == 2
    assert "pip install optuna" in capsys.readouterr().err


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path, capsys) -> None:
    kept = tmp_path / "swept/digits/both-lr-0.1/seed-3/thesis.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    assert sweep(tmp_path, {RATE: [0.1]}) != 0
    assert "holds something else than a run" in capsys.readouterr().err
    assert kept.read_text() == "mine"
