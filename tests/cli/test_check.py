"""`kd-lightning check`: one batch, one line, and nothing is left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from kd_lightning.__main__ import main


def test_one_line_has_the_figures_and_nothing_is_left(config, capfd):
    files = set(Path().rglob("*"))
    cached = "--trainer.callbacks=[{class_path: TeacherCache, init_args: {cache_dir: runs/cache}}]"
    assert main(["check", config, cached]) == 0
    output = capfd.readouterr()
    (line,) = output.out.splitlines()
    assert not output.err
    assert line.startswith("check: ok: OfflineDistiller (student StudentConvNet of 15,562 parameters, teacher Te")
    assert {"train/kd", "train/loss", "val/acc"} <= set(line.replace(":", " ").split())
    assert set(Path().rglob("*")) == files


def test_a_module_of_a_user_is_checked(series, capfd):
    assert main(["check", series]) == 0
    output = capfd.readouterr()
    assert output.out.startswith("check: ok: Regression took one batch in ")
    assert output.out.count("\n") == 1
    assert "loss" in output.out
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], "name a configuration"),
        (["--config=no.yaml"], "no.yaml"),
        (["--config=series.yaml", "--data.width=7"], "model: "),
        (["--config=series.yaml", "--model.fault=no_such_key"], "KeyError: 'no_such_key' ("),
        (["--config=series.yaml", "--trainer.max_epochs=0"], "trainer.max_epochs"),
    ],
)
def test_any_error_costs_one_line(options, wanted, series, capfd):
    assert main(["check", *options]) == 2
    output = capfd.readouterr()
    (line,) = output.err.splitlines()
    assert wanted in line
    assert not output.out


def test_the_weights_of_a_run_are_left_alone(config, capsys):
    Path("runs/mine").mkdir(parents=True)
    kept = nn.Linear(2, 2).state_dict()
    torch.save(kept, "runs/mine/last.ckpt")
    before = Path("runs/mine/last.ckpt").read_bytes()
    assert main(["check", config]) == 0  # where fit would refuse a second run
    assert Path("runs/mine/last.ckpt").read_bytes() == before
    assert [path.name for path in Path("runs/mine").iterdir()] == ["last.ckpt"]
