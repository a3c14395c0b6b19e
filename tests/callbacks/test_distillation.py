"""Distillation in a module of any kind: a run is the one written out by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import (
    ModelCheckpoint,
)
from lightning.pytorch.cli import LightningCLI
from torch.nn import functional

from kd_lightning import load_teacher
from kd_lightning.networks import StudentConvNet
from tests import toys
from tests.callbacks.drop_in import (
    Losses,
    Pair,
    Theirs,
    assert_same,
    batches,
    by_hand,
    distillation,
    fit,
    network,
    second,
    teacher,
)

# ---- what it computes


@pytest.mark.parametrize("hint", [True, False])
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_run_is_the_one_written_out(accumulated, clip, hint, tmp_path):
    module, drop_in, losses = Theirs(), distillation(hint=hint), Losses()
    changes = {"accumulate_grad_batches": accumulated, "gradient_clip_val": clip, "precision": "64-true"}
    fit(module, drop_in, losses, folder=tmp_path, **changes)
    student, connector, found = by_hand(accumulated=accumulated, clip=clip, hint=hint)
    assert losses.found == pytest.approx(found, rel=1e-9)
    assert_same(module.backbone, student)
    if hint:
        assert_same(drop_in.terms["hint"].loss.connector, connector)


@pytest.mark.parametrize(("precision", "rtol"), [("32-true", 1e-5), ("bf16-mixed", 1e-3)])
def test_a_run_is_the_one_written_out_in_other_precisions(precision, rtol, tmp_path):
    module, losses = Theirs(), Losses()
    fit(module, distillation(), losses, folder=tmp_path, precision=precision)
    student, _, found = by_hand(precision=precision)
    assert losses.found == pytest.approx(found, rel=rtol)
    assert_same(module.backbone, student, rtol=rtol, atol=rtol)


def test_the_teacher_and_the_terms_take_the_modules_precision(tmp_path):
    class Types(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            self.found = {p.dtype for p in [*drop_in.teacher.parameters(), *drop_in.terms.parameters()]}

    drop_in, types = distillation(), Types()
    fit(Theirs(), drop_in, types, folder=tmp_path, precision="bf16-true", max_steps=1)
    assert types.found == {torch.bfloat16}


# ---- what its page says


PAGE = (Path(__file__).parents[2] / "docs/drop-in.md").read_text(encoding="utf-8")

PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

(YAML,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


class OfImages(Theirs):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.backbone = StudentConvNet()


class Images(LightningDataModule):
    def train_dataloader(self):
        return toys.Loader([(torch.rand(4, 3, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(4))])


def test_its_program_and_its_yaml_for_their_command_line_do_the_same(workplace, monkeypatch):
    (program,) = [program for program in PROGRAMS if "import timm" not in program]
    names: dict[str, Any] = {
        "Trainer": lambda callbacks: toys.trainer(workplace, *callbacks, max_epochs=2),
        "YourModule": lambda: OfImages(),
        "YourDataModule": Images,
    }
    exec(program, names)
    Path("theirs.yaml").write_text("seed_everything: false\n" + YAML, encoding="utf-8")
    quiet = ["--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.accelerator=cpu"]
    monkeypatch.setattr("sys.argv", ["theirs.py", "fit", "--config=theirs.yaml", "--trainer.max_epochs=2", *quiet])
    cli = LightningCLI(OfImages, Images)
    assert cli.trainer.global_step == 2
    assert toys.same(toys.weights(cli.model), toys.weights(names["trainer"].lightning_module))
    assert not toys.same(toys.weights(cli.model), toys.weights(OfImages()))


# ---- several students


def test_two_students_of_one_module_have_two_drop_ins(tmp_path):
    module, losses = Pair(), Losses()
    checkpoint = ModelCheckpoint(tmp_path)
    trainer = fit(module, distillation(), second(), losses, checkpoint, folder=tmp_path, precision="64-true")
    assert_same(module.backbone, by_hand()[0])
    assert {"train/kd", "train/hint", "train/kd2", "temperature/kd2"} <= set(trainer.logged_metrics)
    student, shown = network(8, seed=4).double(), network(16, seed=5).double()
    x, y = batches()[0]
    logits, soft = student(x.double()), (shown(x.double()) / 2).softmax(1)
    kd = 4 * functional.kl_div((logits / 2).log_softmax(1), soft, reduction="batchmean")
    expected = by_hand()[2][0] + functional.cross_entropy(logits, y) + kd
    assert losses.found[0] == pytest.approx(expected.item(), rel=1e-9)
    saved = torch.load(checkpoint.best_model_path, weights_only=True)["callbacks"]
    assert {"Distillation{'student': 'backbone'}", "Distillation{'student': 'second'}"} <= set(saved)
    assert [name for name, _ in module.named_children()] == ["backbone", "second"]
    assert not {"training_step", "configure_optimizers"} & set(vars(module))


def test_the_summary_has_a_line_about_the_teacher(tmp_path, caplog):
    torch.save(teacher().state_dict(), tmp_path / "teacher.pt")
    loaded = load_teacher(teacher(), tmp_path / "teacher.pt")
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    for given, wanted in ((teacher(), ""), (loaded, f", loaded from {tmp_path / 'teacher.pt'}\n")):
        caplog.clear()
        fit(Theirs(), distillation(teacher=given), folder=tmp_path, enable_model_summary=True)
        line = f"teacher of 'backbone': Sequential, 293 parameters (1 KiB), frozen, outside the module{wanted}"
        assert caplog.text.count(line) == 1
    caplog.clear()
    fit(Theirs(), distillation(), folder=tmp_path)
    assert "frozen" not in caplog.text
