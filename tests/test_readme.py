"""Every command and every program of the README runs, in its order, for a few steps."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kd_lightning.__main__ import main
from kd_lightning.cli.configs import SHIPPED
from tests import toys

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("kd-lightning")
]
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHORT = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
SHORT_COMMANDS = {"fit": [*SHORT, "--data.init_args.train_size=1000"], "test": ["--trainer.limit_test_batches=1"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


def test_its_commands_run_in_their_order(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    named = [command.split()[1] for command in COMMANDS]
    assert named == ["fit"] * 3 + ["test", "export", "list", "show", "layers", "doctor", "check", "fit"]
    for command in COMMANDS:
        _, *arguments = shlex.split(command)
        assert main([*arguments, *SHORT_COMMANDS.get(arguments[0], [])]) == 0, command
    assert (folder / "runs/mnist/teacher/last.ckpt").exists()
    assert (folder / "student.safetensors").exists()
    assert "1503.02531" in capsys.readouterr().out


def test_its_terms_combine(workplace):
    (terms,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    config = yaml.safe_load((SHIPPED / "response/kd.yaml").read_text())
    config["model"]["init_args"] |= yaml.safe_load(terms)
    (workplace / "combined.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config=combined.yaml", *SHORT, "--trainer.accelerator=cpu"]) == 0
    state = torch.load(workplace / "runs/response/kd/last.ckpt", weights_only=True)["state_dict"]
    assert any(key.startswith("terms.hint.loss.connector.") for key in state)


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`:UserWarning")
def test_its_programs_run_one_after_the_other(workplace, monkeypatch):
    monkeypatch.setattr(
        "lightning.pytorch.Trainer",
        lambda callbacks=(), **given: toys.trainer(workplace, *callbacks, **given | {"max_steps": 2}),
    )
    names: dict[str, Any] = {}
    for program in PROGRAMS:
        names.pop("trainer", None)
        exec(program, names)
        if "YourDistilledModule" not in names:
            assert names["trainer"].global_step == 2
    assert len(PROGRAMS) == 3

    learner = names["YourDistilledModule"]()
    batch = (torch.rand(4, 3, 28, 28), torch.arange(4))
    toys.trainer(workplace, max_steps=2).fit(learner, toys.Loader([batch, batch]))
    assert not [name for name in learner.state_dict() if "teacher" in name]


def test_it_is_short_and_has_the_figures_of_the_comparison():
    assert len(README.splitlines()) <= 200
    page = (ROOT / "docs/comparison.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"\| training images .*?\n\n", README, re.DOTALL)
    figures = re.findall(r"\d+\.\d+ ± \d+\.\d+|[+-]\d+\.\d+ \[[^]]*\]", table)
    assert len(figures) == 2 * 5  # of two groups: three accuracies and two differences
    assert not [figure for figure in figures if figure not in page]
