"""The command line: mistakes cost one line, a run directory is complete, and help does not load torch."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch import nn

from kd_lightning import Classifier, OfflineDistiller, UsageError, __version__, freeze, load_student
from kd_lightning.__main__ import main
from kd_lightning.callbacks import ExactResume
from kd_lightning.cli.configs import SHIPPED, find_config, list_configs
from kd_lightning.cli.engine import build
from kd_lightning.cli.run_dir import add_default_callbacks
from kd_lightning.cli.run_loggers import MetricsFile
from kd_lightning.core.metrics import Accuracy, Metrics, NegativeLogLikelihood
from kd_lightning.data import MNISTDataModule
from kd_lightning.losses import KDLoss

CONFIG = """\
model:
  class_path: OfflineDistiller
  init_args:
    student: {class_path: StudentConvNet}
    teacher:
      class_path: kd_lightning.networks.load_teacher
      init_args: {network: {class_path: TeacherConvNet}, checkpoint: runs/mnist/teacher/last.ckpt}
    terms:
      task: {loss: {class_path: TaskLoss}, teacher: null, weight: 0.5}
      kd: {loss: {class_path: KDLoss, init_args: {temperature: 3.0}}, weight: 0.5}
    optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.001}}
data:
  class_path: MNISTDataModule
  init_args: {batch_size: 50, train_size: 100, val_size: 100}
trainer:
  max_epochs: 1
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: runs/mine
"""


@pytest.fixture
def config(workplace: Path) -> str:
    Path("mine.yaml").write_text(CONFIG)
    return "--config=mine.yaml"


def complaint(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line that a mistake costs."""
    assert main(args) == 2
    output = capsys.readouterr()
    lines = [line for line in output.err.splitlines() if not line.startswith("INFO:")]  # logged: "Seed set to 0"
    assert len(lines) == 1, lines
    assert not output.out
    assert lines[0].startswith("kd-lightning: ")
    return lines[0].removeprefix("kd-lightning: ")


EDITS = {  # what is written, what is written instead, and all that the line must say
    "a misspelt section": ("data:", "dta:", ["mine.yaml:12: dta:", "'data'"]),
    "an empty section that is unknown": ("data:", "dat:\ndata:", ["mine.yaml:12: dat:", "'data'"]),
    "a misspelt argument": (
        "student: {",
        "stduent: {",
        ["mine.yaml:4: model.stduent", "OfflineDistiller", "'student'"],
    ),
    "a misspelt scheme": ("OfflineDistiller", "OflineDistiller", ["mine.yaml:2: model:", "'OfflineDistiller'"]),
    "a misspelt network": ("StudentConvNet", "StudentConvnet", ["mine.yaml:4: model.student:", "'StudentConvNet'"]),
    "a misspelt loss": ("KDLoss", "KDLos", ["mine.yaml:10: model.terms.kd.loss:", "'KDLos'", "'KDLoss'"]),
    "a misspelt dotted loss": (
        "TaskLoss",
        "kd_lightning.losses.TaskLos",
        ["mine.yaml:9: model.terms.task.loss:", "'kd_lightning.losses.TaskLoss'"],
    ),
    "a module that is not there": (
        "TaskLoss",
        "kd_lightning.loses.TaskLoss",
        [":9: model.terms.task.loss:", "losses.T"],
    ),
    "a misspelt function": ("load_teacher", "load_teachr", ["mine.yaml:6: model.teacher:", "networks.load_teacher'"]),
    "a misspelt key of a term": (
        "teacher: null, weight",
        "teacher: null, wieght",
        ["mine.yaml:9: model.terms.task.wieght", "Term", "'weight'"],
    ),
    "a misspelt key of a loss": ("temperature", "temprature", [":10: model.terms.kd.loss.temprature", "'temperature'"]),
    "a misspelt key of data": ("batch_size", "bath_size", ["mine.yaml:14: data.bath_size", "'batch_size'"]),
    "a misspelt key of the trainer": ("max_epochs", "max_epoch", ["mine.yaml:16: trainer.max_epoch:", "'max_epochs'"]),
    "a misspelt key of an optimizer": ("lr: 0.001", "lrr: 1", [":11: model.optimizer.lrr", "Adam", "'lr'"]),
    "a misspelt optimizer": ("optim.Adam", "optim.Adm", ["mine.yaml:11: model.optimizer:", "'torch.optim.Adam'"]),
    "a scheduler that lacks something": (
        "    optimizer",
        "    lr_scheduler: {class_path: torch.optim.lr_scheduler.StepLR}\n    optimizer",
        ["mine.yaml:11: model.lr_scheduler:", "step_size", "StepLR"],
    ),
    "a misspelt callback": (
        "  max_epochs",
        "  callbacks: [{class_path: TeacherCach}]\n  max_epochs",
        ["mine.yaml:16: trainer.callbacks.0:", "'TeacherCache'"],
    ),
    "a misspelt key of a callback": (
        "  max_epochs",
        "  callbacks: [{class_path: EarlyStopping, init_args: {monitr: val/acc}}]\n  max_epochs",
        ["mine.yaml:16: trainer.callbacks.0.monitr", "EarlyStopping", "'monitor'"],
    ),
    "a word for a temperature": ("3.0", "hot", [":10: model.terms.kd.loss.temperature", "expected float", "hot"]),
    "a list for a temperature": ("3.0", "[1, 2]", [":10: model.terms.kd.loss.temperature", "expected float", "[1, 2]"]),
    "no temperature": ("3.0", "null", [":10: model.terms.kd.loss.temperature", "expected float", "null"]),
    "a temperature below zero": ("3.0", "-1", [":10: model.terms.kd.loss.temperature", "-1.0", "above 0"]),
    "a temperature of zero": ("3.0", "0", [":10: model.terms.kd.loss.temperature", "0.0", "above 0"]),
    "a temperature that is no number": ("3.0", ".nan", [":10: model.terms.kd.loss.temperature", "nan", "above 0"]),
    "an endless temperature": ("3.0", ".inf", [":10: model.terms.kd.loss.temperature", "inf", "above 0"]),
    "a word for a weight": ("null, weight: 0.5", "null, weight: big", [":9: model.terms.task.weight", "float", "big"]),
    "a weight that is no number": ("null, weight: 0.5", "null, weight: .nan", [":9: model.terms.task.weight", "nan"]),
    "no weight": ("null, weight: 0.5", "null, weight: null", [":9: model.terms.task.weight", "float", "null"]),
    "a number for a network": (
        "student: {class_path: StudentConvNet}",
        "student: 3",
        [":4: model.student:", "Module", "3"],
    ),
    "a loss function for a network": (
        "class_path: StudentConvNet",
        "class_path: kd_lightning.losses.kd_loss",
        ["mine.yaml:4: model.student:", "no Module"],
    ),
    "a list of terms": (
        CONFIG[CONFIG.index("      task") : CONFIG.index("    opt")],
        "      - 1\n",
        [":8: model.terms:"],
    ),
    "no terms": (
        CONFIG[CONFIG.index("    terms") : CONFIG.index("    opt")],
        "    terms: {}\n",
        ["model", "terms is empty"],
    ),
    "terms forgotten": (CONFIG[CONFIG.index("    terms") : CONFIG.index("    opt")], "", ["model", "terms is missing"]),
    "a teacher that needs arguments": (
        "{class_path: TeacherConvNet}",
        "{class_path: MLP}",
        [":7: model.teacher.network"],
    ),
    "a teacher file that is missing": ("teacher/last", "teacher/lost", ["model.teacher", "lost.ckpt", "last.ckpt"]),
    "a teacher of other classes": (
        "{class_path: TeacherConvNet}",
        "{class_path: TeacherConvNet, init_args: {num_classes: 7}}",
        ["mine.yaml:5: model.teacher:", "(10, 512)", "(7, 512)"],
    ),
    "a student of other classes": (
        "{class_path: StudentConvNet}",
        "{class_path: StudentConvNet, init_args: {num_classes: 12}}",
        ["model.terms.kd.loss", "(50, 12)", "(50, 10)"],
    ),
    "a layer that is not there": (
        "kd: {",
        "kd: {student: conv.9, teacher: conv.9, ",
        ["StudentConvNet", "conv.9", "conv.5"],
    ),
    "an empty batch": ("batch_size: 50", "batch_size: 0", ["mine.yaml:14: data.batch_size:", "0"]),
    "a batch below zero": ("batch_size: 50", "batch_size: -4", ["mine.yaml:14: data.batch_size:", "-4"]),
    "half a batch": ("batch_size: 50", "batch_size: 2.5", ["mine.yaml:14: data.batch_size:", "int", "2.5"]),
    "a batch larger than the data": ("batch_size: 50", "batch_size: 500", ["data", "500", "100"]),
    "more images than there are": ("train_size: 100", "train_size: 60001", ["data", "60001"]),
    "a rate below zero": ("lr: 0.001", "lr: -1.0", ["mine.yaml:11: model.optimizer:", "-1.0"]),
    "a word for a rate": ("lr: 0.001", "lr: fast", ["mine.yaml:11: model.optimizer.lr:", "float", "fast"]),
    "a word for epochs": ("max_epochs: 1", "max_epochs: five", [":16: trainer.max_epochs:", "int or null", "five"]),
    "epochs below zero": ("max_epochs: 1", "max_epochs: -5", ["trainer", "max_epochs", "-5"]),
    "an accelerator of fancy": ("accelerator: cpu", "accelerator: quantum", ["trainer", "quantum", "cpu"]),
    "a precision of fancy": (
        "accelerator",
        "precision: fp17\n  accelerator",
        [":19: trainer.precision:", "fp17", "bf16"],
    ),
    "a strategy of fancy": ("accelerator", "strategy: ddpp\n  accelerator", ["trainer", "ddpp"]),
    "an interval of fancy": (
        "    optimizer",
        "    lr_interval: steps\n    optimizer",
        ["mine.yaml:11: model.lr_interval:", "'step' or 'epoch'", "steps"],
    ),
    "a seed below zero": ("trainer:", "seed_everything: -1\ntrainer:", ["mine.yaml:15: seed_everything:", "-1"]),
    "a word for a seed": (
        "trainer:",
        "seed_everything: any\ntrainer:",
        ["mine.yaml:15: seed_everything:", "int", "any"],
    ),
    "no folder": ("runs/mine", "null", ["mine.yaml:22: trainer.default_root_dir:", "directory"]),
    "a key that is set twice": (
        "  max_epochs",
        "  max_epochs: 2\n  max_epochs",
        ["mine.yaml:17:", "trainer.max_epochs"],
    ),
    "a section that is set twice": ("trainer:", "data: {}\ntrainer:", ["mine.yaml:15:", "data", "line 12"]),
    "a tab": ("  max_epochs", "\tmax_epochs", ["mine.yaml:16:", "YAML"]),
    "a bracket that is not closed": ("val_size: 100}", "val_size: 100", ["mine.yaml:15", "YAML"]),
    "no trainer": (CONFIG[CONFIG.index("trainer:") :], "trainer: null\n", ["mine.yaml:15: trainer:", "got null"]),
    "a number for the trainer": (CONFIG[CONFIG.index("trainer:") :], "trainer: 3\n", [":15: trainer:", "got 3"]),
    "an empty mapping that is unknown": ("trainer:", "distiller: {}\ntrainer:", [":15: distiller: there is no"]),
    "an empty mapping that the trainer has not": ("trainer:", "trainer:\n  foo: {}", [":16: trainer.foo: there is no"]),
    "an empty mapping that data has not": ("{batch_size", "{bath: {}, batch_size", [":14: data.bath: there is no"]),
    "a list of arguments": ("{batch_size: 50, train_size: 100, val_size: 100}", "[1]", [":12: data:", "is a list"]),
    "a number for a class": ("MNISTDataModule", "3", [":12: data: class_path is 3"]),
    "no class": ("MNISTDataModule", "null", [":12: data: class_path is null"]),
    "an argument that no class takes": ("  init_args: {b", "  dict_kwargs: {a: 1}\n  init_args: {b", ["data", "'a'"]),
    "images of two channels": ("{batch_size", "{num_channels: 2, batch_size", [":4: model.student:", "in_channels"]),
    "a validation after the last batch": (
        "  max_epochs",
        "  val_check_interval: 1000000\n  max_epochs",
        [":16: trainer.val_check_interval:", "1000000"],
    ),
    "an epoch without end": (
        "{batch_size",
        "{steps_per_epoch: 1000000000000, batch_size",
        [":14: data.steps_per_epoch:"],
    ),
    "a temperature next to zero": ("3.0", "1.0e-320", [":10: model.terms.kd.loss.temperature:", "1e-06"]),
    "a temperature without measure": ("3.0", "1.0e+300", [":10: model.terms.kd.loss.temperature:", "1e+06"]),
    "an alias of itself": ("trainer:", "x: &a [*a]\ntrainer:", ["mine.yaml:15", "x"]),
}


@pytest.mark.parametrize(("old", "new", "says"), EDITS.values(), ids=EDITS)
def test_a_mistake_in_a_file_costs_one_line_that_names_it(old, new, says, config, capsys):
    assert CONFIG.count(old) >= 1
    Path("mine.yaml").write_text(CONFIG.replace(old, new, 1))
    line = complaint(capsys, "fit", config)
    assert not [word for word in says if word not in line], line
    assert len(line) < 400
    assert not list(Path("runs").glob("mine/*.ckpt"))


FILES = {
    "nothing": (b"", "is empty"),
    "a comment": (b"# nothing\n", "is empty"),
    "a list": (b"- 1\n", "no mapping"),
    "a word": (b"hello", "no mapping"),
    "bytes": (b"\xff\xfe\x00", "UTF-8"),
}


@pytest.mark.parametrize(("content", "says"), FILES.values(), ids=FILES)
def test_a_file_without_a_configuration_gets_one_line(content, says, config, capsys):
    Path("mine.yaml").write_bytes(content)
    line = complaint(capsys, "fit", config)
    assert line.startswith("mine.yaml:")
    assert says in line


ARGUMENTS = {
    "a command that is not there": (["fitt"], ["fitt", "'fit'"]),
    "a file that is not there": (["fit", "--config", "mime.yaml"], ["--config mime.yaml", "'mine.yaml'"]),
    "a shipped file that is not there": (["fit", "--config=configs/response/kdd.yaml"], ["configs/response/kd.yaml"]),
    "a folder": (["fit", "--config", "."], ["--config .", "directory", "mine.yaml"]),
    "no file": (["fit", "--config"], ["--config"]),
    "no model": (["fit"], ["model", "--config"]),
    "an option that is not there": (["fit", "--config=mine.yaml", "--trainer.max_epoch=1"], ["'trainer.max_epochs'"]),
    "an option of a loss": (["fit", "--config=mine.yaml", "--model.terms.kd.loss.temp=1"], ["temp", "'temperature'"]),
    "a value that does not fit": (
        ["fit", "--config=mine.yaml", "--model.terms.kd.weight=big"],
        ["kd.weight", "float", "big"],
    ),
    "a value that is missing": (["fit", "--config=mine.yaml", "--trainer.max_epochs"], ["--trainer.max_epochs"]),
    "a value that is refused": (["fit", "--config=mine.yaml", "--data.batch_size=0"], ["data.batch_size", "0"]),
    "a checkpoint that is not there": (["fit", "--config=mine.yaml", "--ckpt_path=no.ckpt"], ["ckpt_path", "no.ckpt"]),
    "nothing to test": (["test", "--config=mine.yaml"], ["ckpt_path", "runs/mine/best.ckpt"]),
    "a checkpoint that is none": (["test", "--config=mine.yaml", "--ckpt_path=mine.yaml"], ["ckpt_path", "mine.yaml"]),
    "weights to go on from": (
        ["fit", "--config=mine.yaml", "--ckpt_path=runs/mnist/teacher/last.ckpt"],
        ["ckpt_path", "last.ckpt"],
    ),
    "an export of nothing": (["export"], ["export", "--checkpoint"]),
    "an export of no file": (["export", "--checkpoint=no.ckpt", "--output=x.safetensors"], ["no.ckpt"]),
    "an export with something else": (
        ["export", "--checkpoint=a", "--output=b", "--outptu=c"],
        ["--outptu", "'--output'"],
    ),
    "a method that is not there": (["show", "kdd"], ["kdd", "'kd'"]),
    "no method": (["show"], ["show: give the name of one method"]),
    "a list of one": (["list", "kd"], ["list takes no argument", "`kd-lightning show kd`"]),
    "the former list": (["methods"], ["methods is now `list` and `show NAME`: kd-lightning list"]),
    "the former name of show": (["methods", "kd"], ["methods is now `list` and `show NAME`: kd-lightning show kd"]),
    "two methods": (["show", "kd", "kl_mae"], ["one method"]),
}


@pytest.mark.parametrize(("args", "says"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_a_mistake_in_the_arguments_costs_one_line_that_names_it(args, says, config, capsys):
    line = complaint(capsys, *args)
    assert not [word for word in says if word not in line], line


def test_a_bug_keeps_its_traceback_and_a_mistake_gets_one_on_demand(config, monkeypatch, capsys):
    def training_step(*_: object) -> None:
        raise ValueError("someone else's")

    with monkeypatch.context() as patch:
        patch.setattr("kd_lightning.schemes.OfflineDistiller.training_step", training_step)
        with pytest.raises(ValueError, match="someone else's"):
            main(["fit", config])
    monkeypatch.setenv("KD_LIGHTNING_TRACEBACK", "1")
    with pytest.raises(UsageError, match=r"data\.batch_size"):
        main(["fit", config, "--data.batch_size=0"])


def test_a_usage_error_from_a_users_own_code_costs_one_line(config, monkeypatch, capsys):
    def training_step(self: object, *_: object) -> None:
        error = UsageError("my_setting=3 must be even: give it 2 or 4")  # built here, as by a helper, and raised below
        raise error

    monkeypatch.setattr("kd_lightning.schemes.OfflineDistiller.training_step", training_step)
    assert complaint(capsys, "fit", config).endswith("model.my_setting: my_setting=3 must be even: give it 2 or 4")


# ---- what a run leaves in its folder


def weights(path: Path | str) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def rows(folder: str) -> list[tuple[int, bool]]:
    """The steps in ``metrics.csv``, and whether each is a validation's."""
    with Path(folder, "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), bool(row["val/acc"])) for row in csv.DictReader(file)]


def test_a_folder_takes_one_run_which_can_be_resumed_there(config, capsys):
    assert main(["fit", config]) == 0
    assert rows("runs/mine") == [(0, False), (1, False), (1, True)]
    before = Path("runs/mine/config.yaml").read_text(), set(Path("runs/mine").iterdir())
    capsys.readouterr()

    line = complaint(capsys, "fit", config, "--trainer.max_epochs=2")
    assert line.startswith("trainer.default_root_dir: runs/mine has a run")
    assert "--ckpt_path runs/mine/last.ckpt" in line
    assert "--trainer.default_root_dir runs/mine-2" in line
    assert (Path("runs/mine/config.yaml").read_text(), set(Path("runs/mine").iterdir())) == before
    complaint(capsys, "fit", config, "--ckpt_path=runs/mnist/teacher/last.ckpt")

    assert main(["fit", config, "--trainer.max_epochs=2", "--ckpt_path=last"]) == 0
    assert Path("runs/mine/config.yaml").read_text() == before[0]
    assert rows("runs/mine") == [(0, False), (1, False), (1, True), (2, False), (3, False), (3, True)]
    assert main(["fit", config, "--trainer.max_epochs=2", "--trainer.default_root_dir=runs/whole"]) == 0
    assert equal(weights("runs/mine/last.ckpt"), weights("runs/whole/last.ckpt"))


def test_a_write_that_fails_keeps_the_old_metrics(tmp_path, monkeypatch):
    file = MetricsFile(tmp_path)
    for step in range(3):
        file.log_metrics({"loss": 1.0}, step)
    file.save()
    before = (tmp_path / "metrics.csv").read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        MetricsFile(tmp_path).log_metrics({"loss": 2.0}, 1)
    assert (tmp_path / "metrics.csv").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_metrics_continue_at_the_step_of_a_resume(tmp_path):
    for steps in ([0, 1, 2], [1, 2, 3]):
        file = MetricsFile(tmp_path)
        for step in steps:
            file.log_metrics({"loss": 1.0} | ({"new": 1.0} if steps[0] else {}), step)
            file.save()
    with (tmp_path / "metrics.csv").open(newline="") as written:
        kept = [(row["step"], row["new"]) for row in csv.DictReader(written)]
    assert kept == [("0", ""), ("1", "1.0"), ("2", "1.0"), ("3", "1.0")]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_checkpoint_of_another_network_is_refused(config, capsys):
    assert main(["fit", config]) == 0
    capsys.readouterr()
    line = complaint(capsys, "test", config, "--model.student=TeacherConvNet")
    assert line.startswith("ckpt_path: ")
    assert "conv.0.weight" in line
    Path("resumed.yaml").write_text("ckpt_path: runs/mine/last.ckpt\n")
    line = complaint(capsys, "test", config, "--config=resumed.yaml", "--model.student=TeacherConvNet")
    assert line.startswith("resumed.yaml:1: ckpt_path: runs/mine/last.ckpt: these weights are not of this ")


def test_a_start_that_failed_may_be_repeated_in_place(config, capsys):
    complaint(capsys, "fit", config, "--model.student.num_classes=12")
    assert Path("runs/mine/config.yaml").exists()
    assert main(["fit", config]) == 0
    assert yaml.safe_load(Path("runs/mine/config.yaml").read_text())["model"]["init_args"]["student"]["init_args"] == {
        "batch_norm": False,
        "in_channels": 3,
        "num_classes": 10,
    }


STOPS = {  # how a run is stopped, what the line says, the exit code
    "ctrl-c": (signal.SIGINT, "interrupted", 130),
    "sigterm": (signal.SIGTERM, "terminated", 143),
}


@pytest.mark.parametrize(("number", "word", "code"), STOPS.values(), ids=STOPS)
def test_an_interrupted_run_keeps_its_files_and_resumes(number, word, code, config, monkeypatch, capsys):
    def stop(learner: LightningModule, *_: object) -> None:
        if learner.trainer.global_step == 3:
            os.kill(os.getpid(), number)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    two_epochs = ["fit", config, "--trainer.max_epochs=2"]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is in its background deaf to Ctrl-C
    with monkeypatch.context() as patch:
        patch.setattr("kd_lightning.schemes.OfflineDistiller.on_train_batch_end", stop)
        try:
            assert main(two_epochs) == code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if not line.startswith(("INFO:", "["))] == [
        f"kd-lightning: {word}: resume with --ckpt_path runs/mine/last.ckpt"
    ]
    assert torch.load("runs/mine/last.ckpt", weights_only=True)["global_step"] == 3
    assert torch.load("runs/mine/best.ckpt", weights_only=True)["global_step"] == 2  # the best stays the best
    assert main([*two_epochs, "--ckpt_path=runs/mine/last.ckpt"]) == 0
    assert main([*two_epochs, "--trainer.default_root_dir=runs/whole"]) == 0
    assert equal(weights("runs/mine/last.ckpt"), weights("runs/whole/last.ckpt"))


def test_evaluation_uses_the_best_checkpoint_and_does_not_change_the_run_directory(config, capsys):
    assert main(["fit", config, "--trainer.max_epochs=2"]) == 0
    before = {path: path.stat().st_mtime_ns for path in Path("runs/mine").iterdir()}
    learner = build([config]).model
    learner.load_state_dict(weights("runs/mine/best.ckpt"))
    capsys.readouterr()
    assert main(["test", config]) == 0
    reported = re.search(r"test/acc\s*│\s*(\S+)", capsys.readouterr().out)
    assert main(["predict", config]) == 0
    predictions = Path("runs/mine/predictions.safetensors")
    assert capsys.readouterr().out == f"{predictions}: logits (10000, 10), in the order of the test set\n"
    data = MNISTDataModule()
    images, labels, _ = zip(*data.test_dataloader(), strict=True)
    logits = load_file(predictions)["logits"]
    torch.testing.assert_close(logits[:250], learner.student(images[0]))
    assert reported is not None
    accuracy = (logits.argmax(dim=1) == torch.cat(labels)).double().mean().item()
    assert float(reported[1]) == pytest.approx(accuracy, abs=1e-6)
    predictions.unlink()
    assert {path: path.stat().st_mtime_ns for path in Path("runs/mine").iterdir()} == before


def test_a_checkpoint_is_data(config, capsys):
    class Payload:
        def __reduce__(self):
            return Path.touch, (Path("executed"),)

    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6", "callbacks": Payload()}, "evil.ckpt")
    for command in ("fit", "test"):
        assert "evil.ckpt" in complaint(capsys, command, config, "--ckpt_path=evil.ckpt")
    assert not Path("executed").exists()


# ---- what it is made of


def kinds(args: list[str]) -> list[str]:
    return [type(callback).__name__ for callback in build(args).trainer.callbacks]


def test_missing_default_callbacks_are_added(config):
    bar = ["--trainer.enable_progress_bar=true"]
    assert kinds([config]) == [
        "FaultTolerance",
        "ExactResume",
        "TeacherFreezing",
        "FastLoop",
        "SaveConfig",
        "ModelCheckpoint",
        "ModelCheckpoint",
    ]
    assert [name for name in kinds([config, *bar]) if "Bar" in name] == ["RichProgressBar"]

    own = {"callbacks": [{"class_path": "TQDMProgressBar"}, {"class_path": "ExactResume", "init_args": {"seed": 7}}]}
    own["callbacks"] += [{"class_path": "ModelCheckpoint", "init_args": {"filename": "mine"}}]
    Path("own.yaml").write_text(yaml.safe_dump({"trainer": own | {"logger": False}}))
    run = build([config, "--config=own.yaml", *bar])
    assert sorted(type(callback).__name__ for callback in run.trainer.callbacks) == [
        *("ExactResume", "FastLoop", "FaultTolerance", "ModelCheckpoint", "SaveConfig"),
        *("TQDMProgressBar", "TeacherFreezing"),
    ]
    assert [callback.seed for callback in run.trainer.callbacks if isinstance(callback, ExactResume)] == [7]
    assert not run.trainer.loggers
    assert "ModelCheckpoint" not in kinds([config, "--trainer.enable_checkpointing=false"])


class Follows(Classifier):
    """Its metrics are injected: the best epoch has the lowest loss."""

    def configure_metrics(self) -> Metrics:
        return Metrics({"acc": Accuracy(), "nll": NegativeLogLikelihood()}, "classes", monitor="nll")


def test_the_best_checkpoint_follows_the_monitor_of_the_scheme(config):
    model = "model: {class_path: tests.cli.test_cli.Follows, init_args: {student: {class_path: StudentConvNet}}}\n"
    Path("mine.yaml").write_text(model + CONFIG[CONFIG.index("data:") :])
    best, _ = (each for each in build([config]).trainer.callbacks if isinstance(each, ModelCheckpoint))
    assert (best.monitor, best.mode) == ("val/nll", "min")
    assert main(["fit", config, "--trainer.max_epochs=3"]) == 0
    with Path("runs/mine/metrics.csv").open(newline="") as file:
        losses = {int(row["step"]) + 1: float(row["val/nll"]) for row in csv.DictReader(file) if row["val/nll"]}
    assert len(losses) == 3
    assert torch.load("runs/mine/best.ckpt", weights_only=True)["global_step"] == min(losses, key=losses.__getitem__)


@pytest.mark.parametrize("teacher", [None, "a name", nn.Linear(2, 2)], ids=["none", "no module", "not frozen"])
def test_a_users_module_needs_no_frozen_teacher(teacher, tmp_path):
    module = LightningModule()
    module.teacher = teacher
    found = add_default_callbacks([], tmp_path, module, checkpoints=True, progress_bar=False)
    assert [type(callback).__name__ for callback in found] == [
        "FaultTolerance",
        "ExactResume",
        "FastLoop",
        "ModelCheckpoint",
    ]
    module.teacher = freeze(nn.Linear(2, 2))
    found = add_default_callbacks([], tmp_path, module, checkpoints=False, progress_bar=False)
    assert [type(callback).__name__ for callback in found] == [
        "FaultTolerance",
        "ExactResume",
        "TeacherFreezing",
        "FastLoop",
    ]


def test_only_a_teacher_that_is_frozen_is_held(config):
    assert "TeacherFreezing" not in kinds(["--config=configs/mnist/student.yaml"])
    learning = "{class_path: tests.cli.test_cli.WithLearningTeacher}"
    Path("mine.yaml").write_text(f"model: {learning}\n" + CONFIG[CONFIG.index("data:") :])
    assert kinds([config]) == ["FaultTolerance", "ExactResume", "FastLoop", "SaveConfig", "ModelCheckpoint"]


def test_a_scheme_that_optimizes_by_hand_gets_no_fast_loop_unless_it_is_asked_for(config):
    by_hand = "{class_path: tests.cli.test_cli.ByHand}"
    Path("mine.yaml").write_text(f"model: {by_hand}\n" + CONFIG[CONFIG.index("data:") :])
    assert "FastLoop" not in kinds([config])
    assert kinds([config, "--trainer.callbacks+=FastLoop"]).count("FastLoop") == 1


class WithLearningTeacher(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.teacher = torch.nn.Linear(2, 2)


class ByHand(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


def test_files_and_options_are_laid_on_top_of_each_other(config):
    Path("top.yaml").write_text("model: {init_args: {terms: {kd: {weight: 0.25}}}}")
    terms = build([config, "--config", "top.yaml", "--model.terms.kd.loss.temperature=8"]).model.terms
    assert (terms["kd"].weight, terms["kd"].loss.temperature, terms["task"].weight) == (0.25, 8.0, 0.5)


@pytest.mark.filterwarnings(r"ignore:\s*(By default only one Jsonargparse|\S+ was deprecated in v4)")  # by Lightning
def test_a_run_is_rebuilt_from_the_plain_values_in_its_checkpoint(config):
    given = {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5, "momentum": 0.9}}}
    given |= {
        "lr_scheduler": {"class_path": "StepLR", "init_args": {"step_size": 1, "gamma": 0.1}},
        "lr_interval": "step",
    }
    Path("top.yaml").write_text(yaml.safe_dump({"model": {"init_args": given}}))
    assert main(["fit", config, "--config=top.yaml"]) == 0
    checkpoint = torch.load("runs/mine/last.ckpt", weights_only=True)
    assert checkpoint["lr_schedulers"][0]["_last_lr"] == [pytest.approx(0.005)]
    learner = OfflineDistiller.load_from_checkpoint("runs/mine/last.ckpt", weights_only=True)
    built = learner.configure_optimizers()
    assert isinstance(built["optimizer"], torch.optim.SGD)
    assert built["optimizer"].param_groups[0]["momentum"] == 0.9
    assert built["lr_scheduler"]["scheduler"].gamma == 0.1
    assert built["lr_scheduler"]["interval"] == "step"


def test_a_configuration_is_looked_for_here_and_then_among_the_shipped(workplace):
    assert find_config("configs/response/kd.yaml") == SHIPPED / "response" / "kd.yaml"
    assert find_config("response/kd.yaml") == SHIPPED / "response" / "kd.yaml"
    Path("response").mkdir()
    Path("response/kd.yaml").write_text("trainer: {}\n")
    assert find_config("response/kd.yaml") == Path("response/kd.yaml")


# ---- what it says, and how soon


def test_advertisements_and_intended_warnings_are_not_printed(config, caplog, recwarn):
    with caplog.at_level("INFO"):
        assert main(["fit", config, "--trainer.log_every_n_steps=50", "--data.val_size=0"]) == 0
    assert not [text for warning in recwarn if "the teacher gives" not in (text := str(warning.message))]  # untrained
    assert not [record for record in caplog.records if "Tip" in record.getMessage()]
    assert [record for record in caplog.records if "max_epochs=1" in record.getMessage()]  # anything else is said


@pytest.mark.filterwarnings("default:.*something of their own:UserWarning")
def test_other_warnings_are_printed(config, monkeypatch):
    def warn(*_: object) -> None:
        warnings.warn("something of their own", UserWarning, stacklevel=1)

    monkeypatch.setattr("kd_lightning.schemes.OfflineDistiller.on_fit_start", warn)
    with pytest.warns(UserWarning, match="something of their own"):
        assert main(["fit", config]) == 0


ASKS = {"--help": "usage: kd-lightning", "--version": f"kd-lightning {__version__}", "list": "1503.02531"}


@pytest.mark.parametrize(("asked", "answer"), ASKS.items())
def test_questions_do_not_wait_for_torch(asked, answer):
    program = (
        f"import sys; from kd_lightning.__main__ import main; main(['{asked}']); print(*sys.modules, file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert answer in run.stdout
    assert not {"torch", "lightning", "yaml", "jsonargparse", "numpy"} & set(run.stderr.split())


def test_list_and_show_have_the_files_of_the_tree(capsys):
    files = {path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.glob("*/*.yaml")}
    names = {method.name for method in list_configs()}
    assert names == {name for name in files if name.partition("/")[0] not in ("parts", "compare")}
    assert main(["list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in listed} == names
    for name in ("kd", "response/kd"):
        assert main(["show", name]) == 0
        assert capsys.readouterr().out == (SHIPPED / "response" / "kd.yaml").read_text()


def test_a_student_is_exported(config, capsys):
    assert main(["fit", config]) == 0
    capsys.readouterr()
    assert main(["export", "--checkpoint=runs/mine/last.ckpt", "--output=student.safetensors"]) == 0
    size = Path("student.safetensors").stat().st_size
    assert capsys.readouterr().out == f"student.safetensors: 15,562 parameters of F32, {size / 1024:.1f} KiB\n"
    trained = weights("runs/mine/last.ckpt")
    assert equal(
        load_student("student.safetensors").state_dict(), {k.removeprefix("student."): v for k, v in trained.items()}
    )


def test_our_short_names_are_ours_whatever_else_is_imported(config, monkeypatch):
    elsewhere = ModuleType("elsewhere")
    elsewhere.KDLoss = type("KDLoss", (nn.Module,), {"__module__": "elsewhere"})
    monkeypatch.setitem(sys.modules, "elsewhere", elsewhere)
    assert type(build([config]).model.terms["kd"].loss) is KDLoss


@pytest.mark.slow  # a process that imports everything anew; announcements in this process are quick
def test_errors_before_the_run_stand_alone(config):
    options = ["--trainer.val_check_interval=1000000", "--trainer.default_root_dir=mine.yaml"]
    program = f"from kd_lightning.__main__ import main; [print(main(['fit', '{config}', o])) for o in {options}]"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout.split() == ["2", "2"]
    interval, directory = run.stderr.splitlines()
    assert "trainer.val_check_interval" in interval
    assert "mine.yaml" in directory
    assert "trainer.default_root_dir" in directory


def test_announcements_are_logged_when_the_run_starts(config, caplog):
    with caplog.at_level("INFO"):
        assert main(["fit", config]) == 0
    messages = [record.getMessage() for record in caplog.records]
    assert [message for message in messages if message.startswith("Seed set to 0")]
    assert [message for message in messages if message.startswith("GPU available")]
    caplog.clear()
    with caplog.at_level("INFO"):
        assert main(["fit", config]) == 2  # its directory has a run
    assert not [record for record in caplog.records if record.getMessage().startswith(("Seed", "GPU", "TPU"))]
