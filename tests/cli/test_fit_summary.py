"""The last lines of a fit: figures, files and the next commands, once."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kd_lightning.__main__ import main

TWICE = ["--trainer.max_epochs=2", "--data.init_args.val_size=100"]


def monitored(path: str) -> float:
    callbacks = torch.load(path, weights_only=True)["callbacks"]
    (score,) = (state["best_model_score"] for state in callbacks.values() if state.get("monitor"))
    return score.item()


def test_a_fit_ends_with_its_figures_and_the_next_commands(config, capsys):
    assert main(["fit", config, *TWICE]) == 0
    first, best, last, *commands = capsys.readouterr().out.splitlines()
    assert first.startswith("runs/mine: 2 epochs, 4 steps in ")
    assert best.startswith("  best.ckpt: step ")
    assert f"val/acc {monitored('runs/mine/last.ckpt'):.4f}, val/nll " in best
    assert last.startswith("  last.ckpt: step 4, val/acc 0.")
    typed = [shlex.split(command.removeprefix("next:")) for command in commands]
    assert [command[:2] for command in typed] == [
        ["kd-lightning", "test"],
        ["kd-lightning", "export"],
        ["tensorboard", "--logdir"],
    ]
    for _, *arguments in typed[:2]:
        assert main(arguments) == 0
    assert Path("student.safetensors").exists()


def test_the_best_of_before_a_resume_has_its_score(config, capsys):
    assert main(["fit", config, "--trainer.max_epochs=1"]) == 0
    capsys.readouterr()
    worse = "--model.init_args.optimizer.init_args.lr=0.0"
    assert main(["fit", config, "--trainer.max_epochs=2", "--ckpt_path=last", worse]) == 0
    _, best, *_ = capsys.readouterr().out.splitlines()
    assert best == f"  best.ckpt: val/acc {monitored('runs/mine/best.ckpt'):.4f}" or "step " in best


def test_a_module_of_a_user_without_validation_has_its_own_figures(series, capsys):
    assert main(["fit", series, "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:1] in " nr"]
    assert [line for line in lines if line.startswith("  last.ckpt: step 5, loss ")]
    assert not [line for line in lines if "export" in line or "kd-lightning test" in line]
    assert lines[-1] == "next: tensorboard --logdir runs/run"


def test_other_commands_and_failed_fits_have_none(config, capsys):
    assert main(["fit", config, "--trainer.max_epochs=1"]) == 0
    assert capsys.readouterr().out.count("next: ") == 1
    assert main(["fit", config]) == 2  # the directory has a run
    assert main(["validate", config]) == 0
    assert "next: " not in capsys.readouterr().out


@pytest.mark.slow
def test_only_the_first_process_prints(config):
    command = [sys.executable, "-m", "kd_lightning", "fit", config, "--trainer.devices=2", "--trainer.strategy=ddp"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert run.stdout.count("next: ") == run.stdout.count("best.ckpt: ") == 1
