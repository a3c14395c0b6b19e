"""Every shipped YAML file that trains something runs, and what it writes can be loaded again.

See `tests/shipped.py` for how its runs are made small.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import kd_lightning.losses
from kd_lightning import load_student
from kd_lightning.__main__ import main
from kd_lightning.cli.configs import SHIPPED
from kd_lightning.cli.engine import build
from kd_lightning.compare.plan.plan_file import read_plan
from kd_lightning.core.traits import has_trait
from tests import ranks, shipped, toys
from tests.shipped import METHODS

PARTS = sorted((SHIPPED / "parts").glob("*.yaml"))
ZOO = SHIPPED / "compare/zoo.yaml"
CHOSEN = shipped.one_of_each_pair()
"""Whose whole command line runs in `make test`, which trains, saves and loads the others for one step."""

pytestmark = pytest.mark.filterwarnings(
    r"ignore:\s*(By default only one Jsonargparse|\S+ was deprecated in v4)"
)  # what Lightning calls


def is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or type(value) in (str, int, float, bool)


def check_checkpoint(path: Path, cli: Any, batches: int) -> None:
    """Compare a checkpoint with the run that wrote it, and load it as a scheme and as a student alone."""
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == batches * cli.model.optimizer_steps_per_batch
    assert is_plain(checkpoint["hyper_parameters"])
    teacher = dict(cli.model.named_children()).get("teacher", nn.Module())
    learns = any(parameter.requires_grad for parameter in teacher.parameters())
    moves = any(has_trait(callback, "changes_teacher") for callback in cli.trainer.callbacks)
    assert any(key.startswith("teacher.") for key in checkpoint["state_dict"]) == (moves or learns)

    learner = type(cli.model).load_from_checkpoint(path, weights_only=True)
    prefix = f"{checkpoint['inference_network']}."
    trained = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    assert trained
    for loaded in (learner.get_submodule(learner.inference_network_name), load_student(path)):
        assert toys.same(loaded.state_dict(), trained)


def every_method(quick: set[str]) -> Any:
    """Parametrize a test with every method, of which all but the quick ones are slow tests."""
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in METHODS]
    )


@every_method(quick=METHODS.keys() - CHOSEN)
def test_a_step_is_trained_and_loaded_again(name, provide, tmp_path):
    provide(name)
    one = ["--trainer.limit_train_batches=1", "--trainer.enable_checkpointing=false"]
    cli = build([*shipped.small(name), *one, f"--trainer.default_root_dir={tmp_path}/run"])
    cli.run()
    assert cli.trainer.num_training_batches == 1
    cli.trainer.save_checkpoint(tmp_path / "step.ckpt")
    check_checkpoint(tmp_path / "step.ckpt", cli, batches=1)


@every_method(quick=CHOSEN)
def test_the_command_line_trains_and_tests(name, provide, tmp_path):
    provide(name)
    assert main(["fit", *shipped.small(name), f"--trainer.default_root_dir={tmp_path}/run"]) == 0
    config = str(tmp_path / "run/config.yaml")
    cli = build(["--config", config])  # the file rebuilds the run
    cli.datamodule.trainer = cli.trainer
    batches = min(2, len(cli.datamodule.train_dataloader()))
    check_checkpoint(tmp_path / "run/last.ckpt", cli, batches)

    written = {path.name.partition(".tfevents")[0] for path in (tmp_path / "run").iterdir()}
    validated = "val/" in (tmp_path / "run/metrics.csv").read_text()
    best = {"best.ckpt"} if validated else set()
    assert written == {"config.yaml", "last.ckpt", "metrics.csv", "events.out"} | best | shipped.extra_files(name)
    assert validated == bool(cli.datamodule.val_dataloader())
    assert main(["test", "--config", config, "--trainer.limit_test_batches=1"]) == 0


def test_a_file_that_another_run_reads_is_written_by_its_run():
    needed = {(source, path.name) for name in METHODS for path, source in shipped.needed_files(name).items()}
    assert len(needed) > 10
    for source, file in needed:
        assert file in {"last.ckpt", "best.ckpt"} | shipped.extra_files(source)


def test_overlays_are_of_shipped_files():
    names = {path.relative_to(shipped.CONF).with_suffix("").as_posix() for path in shipped.CONF.rglob("*.yaml")}
    families = {f"{name.partition('/')[0]}/default" for name in METHODS}
    assert names <= {"default"} | families | METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_opens_with_what_it_is_and_how_it_is_run(name):
    text = METHODS[name].path.read_text()
    about, command, *_ = text.splitlines()
    assert about.startswith("# ")
    assert command.startswith(f"# kd-lightning fit --config configs/{name}.yaml")
    assert len(text.splitlines()) < 40
    assert yaml.safe_load(text)["trainer"]["default_root_dir"] == f"runs/{name}"


def test_every_loss_is_a_method_or_a_mistake_that_a_page_explains():
    used = "".join(method.path.read_text() for method in METHODS.values())
    losses = [name for name in kd_lightning.losses.__all__ if name[0].isupper()]
    unused = [name for name in losses if f"class_path: {name}" not in used]
    explained = (SHIPPED.parent / "docs/origin.md").read_text()
    assert [name for name in unused if f"`{name}`" in explained] == unused
    assert len(unused) <= 1


def test_the_zoo_has_every_loss():
    trained = {name: yaml.safe_load(method.path.read_text())["data"]["init_args"] for name, method in METHODS.items()}
    # a transfer set is other data for a loss that the zoo has: classes that are tested were never trained on
    of_losses = {name for name in METHODS if name.startswith(("response/", "feature/", "relation/"))}
    other_data = {name for name, data in trained.items() if "classes" in data}
    plan = read_plan(ZOO)
    compared = [variant.config["trainer"]["default_root_dir"] for variant in plan.variants]
    assert not {f"runs/{name}" for name in of_losses - other_data} - set(compared)
    assert not {f"runs/{name}" for name in other_data} & set(compared)
    zoo = {group.name: group for group in plan.groups}["zoo"]
    assert {len(variant.runs) for variant in zoo.variants} == {5}


@pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported on CPU:UserWarning")  # as the part's header says
@pytest.mark.parametrize("part", [part for part in PARTS if part.stem != "ddp"], ids=lambda part: part.stem)
def test_a_part_goes_on_top(part, workplace):
    few = ["--data.init_args.train_size=640", "--data.init_args.val_size=100"]  # a teacher may be asked about all
    folder = f"--trainer.default_root_dir={workplace}/run"
    assert main(["fit", *shipped.small("mnist/distilled"), f"--config={part}", *few, folder]) == 0
    saved = yaml.safe_load((workplace / "run/config.yaml").read_text())
    precision = re.search(r"^  precision: (\S+)", part.read_text(), re.MULTILINE)
    assert saved["trainer"]["precision"] == (precision[1] if precision else None)


@pytest.mark.slow  # imports torch three times: quick tests of two processes fork theirs
@ranks.two_processes
def test_two_processes_from_the_command_line(workplace):
    given = [*shipped.small("mnist/distilled"), "--config=configs/parts/ddp.yaml"]
    command = [sys.executable, "-m", "kd_lightning", "fit", *given]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    assert "Starting with 2 processes" in run.stderr
    assert "Warning" not in run.stderr
    assert "Tip" not in run.stderr
    folder = workplace / "runs/mnist/distilled"
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 2
    assert (folder / "config.yaml").exists()
