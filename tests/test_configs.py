"""Every shipped YAML file that trains something runs, and what it writes can be loaded again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import yaml

import kd_lightning.losses
from kd_lightning import callbacks, load_student, schemes
from kd_lightning.__main__ import main
from kd_lightning.cli.configs import SHIPPED, methods
from kd_lightning.compare.plan.plan_file import read_plan

METHODS = {method.name: method for method in methods()}
PARTS = sorted((SHIPPED / "parts").glob("*.yaml"))
ZOO = SHIPPED / "compare/zoo.yaml"
SHORT = (
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.accelerator=cpu",
)


def is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or type(value) in (str, int, float, bool)


@pytest.mark.filterwarnings(
    r"ignore:\s*(By default only one Jsonargparse|\S+ was deprecated in v4)"
)  # what Lightning calls
@pytest.mark.parametrize("name", METHODS)
def test_trains_and_is_loaded_again(name, workplace):
    folder = workplace / "run"
    given = ["--config", f"configs/{name}.yaml", *SHORT, f"--trainer.default_root_dir={folder}"]
    if "image_steps" in METHODS[name].path.read_text():  # each round of images is hundreds of steps
        given += ["--model.init_args.image_steps=2", "--model.init_args.round_size=16"]
    if any(word in METHODS[name].path.read_text() for word in ("PseudoLabels", "ActivationStatistics")):
        # which would look at every image
        given += ["--data.init_args.train_size=640"]
    if name in ("data_free/dafl_lenet", "data_free/dfad_lenet"):  # batches for a GPU
        given += ["--data.init_args.batch_size=16"]
    assert main(["fit", *given]) == 0
    written = {path.name.partition(".tfevents")[0] for path in folder.iterdir()}
    config = yaml.safe_load(METHODS[name].path.read_text())
    wanted = {"config.yaml", "last.ckpt", "metrics.csv", "events.out"}
    if config["data"]["class_path"] != "NoiseDataModule":  # which has nothing to validate on
        wanted |= {"best.ckpt"}
    if "PseudoLabels" in METHODS[name].path.read_text():
        wanted |= {"pseudo_labels.safetensors"}
    if "ActivationStatistics" in METHODS[name].path.read_text():
        wanted |= {"statistics.safetensors"}
    assert written == wanted

    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    own_moves = {"generator_steps", "student_steps"} & set(config["model"]["init_args"])
    moves = [config["model"]["init_args"][move] for move in own_moves] + [1] * len(checkpoint["optimizer_states"])
    given = config["data"]["init_args"]
    batches = 1 if given.get("train_size") == given["batch_size"] and "steps_per_epoch" not in given else 2
    assert checkpoint["global_step"] == batches * sum(moves[: len(checkpoint["optimizer_states"])])
    assert is_plain(checkpoint["hyper_parameters"])
    named = [callback["class_path"] for callback in config["trainer"].get("callbacks", [])]
    moves = any(issubclass(getattr(callbacks, callback), callbacks.EvolvingTeacher) for callback in named)
    learns = config["model"]["class_path"] == "KDGAN"
    assert any(key.startswith("teacher.") for key in checkpoint["state_dict"]) == (moves or learns)

    learner = getattr(schemes, config["model"]["class_path"]).load_from_checkpoint(
        folder / "last.ckpt", weights_only=True
    )
    deployed = f"{checkpoint['inference_network']}."
    trained = {k.removeprefix(deployed): v for k, v in checkpoint["state_dict"].items() if k.startswith(deployed)}
    for loaded in (learner.get_submodule(learner.inference_network_name), load_student(folder / "last.ckpt")):
        assert loaded.state_dict().keys() == trained.keys()
        for key, value in loaded.state_dict().items():
            assert torch.equal(value, trained[key]), key

    assert main(["test", "--config", str(folder / "config.yaml"), "--trainer.limit_test_batches=1"]) == 0


@pytest.mark.parametrize("name", METHODS)
def test_opens_with_what_it_is_and_how_it_is_run(name):
    text = METHODS[name].path.read_text()
    about, command, *_ = text.splitlines()
    assert about.startswith("# ")
    assert command.startswith(f"# kd-lightning fit --config configs/{name}.yaml")
    assert len(text.splitlines()) < 40
    assert yaml.safe_load(text)["trainer"]["default_root_dir"] == f"runs/{name}"


def test_every_loss_is_a_method():
    used = "".join(method.path.read_text() for method in METHODS.values())
    losses = [name for name in kd_lightning.losses.__all__ if name[0].isupper()]
    unused = [name for name in losses if f"class_path: {name}" not in used]
    assert unused == ["ProbabilityCrossEntropyLoss"]  # the origin's mistake is there to be explained, not to train with


TRANSFER_SETS = {"response/kd_without_threes", "response/kd_sevens_and_eights"}
"""Other data for a loss that the zoo has: their test images are of classes that were never trained on."""


def test_the_zoo_has_every_loss():
    names = {name for name in METHODS if name.partition("/")[0] in ("response", "feature", "relation")} - TRANSFER_SETS
    missing = {name for name in names if f"config: ../{name}.yaml" not in ZOO.read_text()}
    assert not missing
    zoo = {group.name: group for group in read_plan(ZOO).groups}["zoo"]
    assert {len(variant.runs) for variant in zoo.variants} == {5}


@pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported on CPU:UserWarning")  # as the part's header says
@pytest.mark.parametrize("part", [part for part in PARTS if part.stem != "ddp"], ids=lambda part: part.stem)
def test_a_part_goes_on_top(part, workplace):
    few = ["--data.init_args.train_size=640", "--data.init_args.val_size=100"]  # a teacher may be asked about all
    assert main(["fit", "--config=configs/response/kd.yaml", f"--config=configs/parts/{part.name}", *few, *SHORT]) == 0
    saved = yaml.safe_load((workplace / "runs/response/kd/config.yaml").read_text())
    assert saved["trainer"]["precision"] == {"bf16": "bf16-mixed", "fp16": "16-mixed"}.get(part.stem)


def test_two_processes_from_the_command_line(workplace):
    given = ["--config=configs/mnist/distilled.yaml", "--config=configs/parts/ddp.yaml", *SHORT]
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
