"""Distillation of a user's module on two processes equals one; run as a program, this file is one rank."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning import Term
from kd_lightning.callbacks.distillation import Distillation
from kd_lightning.core.hashing import weights_hash
from kd_lightning.losses import KDLoss
from tests import toys
from tests.ranks import run_two, two_processes

pytestmark = two_processes


class Hint(nn.Module):
    """A loss with a connector that compares samples with each other."""

    compares_samples = True

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.connector = nn.Linear(8, 6)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        mapped, shown = self.connector(student), teacher.flatten(1)
        return functional.mse_loss(mapped @ mapped.T, shown @ shown.T)


class Theirs(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 784, 8), nn.Tanh(), nn.Linear(8, 10))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": functional.cross_entropy(self.backbone(batch[0]), batch[1])}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.backbone(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def teacher(seed: int) -> nn.Module:
    """A teacher with channels_last weights and BatchNorm."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10)
    )
    network[1].running_mean += seed
    return network.to(memory_format=torch.channels_last)


def distillation(rank: int = 0, hint_seed: int = 3) -> Distillation:
    """Build the callback; teacher and connector have other weights on ranks other than 0."""
    terms = {
        "kd": Term(KDLoss(3.0), weight=0.5),
        "hint": Term(Hint(hint_seed + rank), weight=0.1, student="2", teacher="2"),
    }
    return Distillation("backbone", teacher(seed=5 + rank), terms)


def fit(folder: Path, ranks: int, ckpt_path: Path | None = None, hint_seed: int = 3) -> tuple[dict[str, Tensor], Any]:
    """Return the weights of student and connector after a fit, and the teacher's hash."""
    module, drop_in = Theirs(), distillation(int(os.environ.get("LOCAL_RANK", 0)), hint_seed)
    checkpoint = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    parallel: dict[str, Any] = {"strategy": "ddp", "devices": ranks} if ranks > 1 else {}
    trainer = toys.trainer(folder, drop_in, checkpoint, max_epochs=2, gradient_clip_val=0.5, **parallel)
    trainer.fit(module, toys.data(batch_size=32 // ranks, augmentation=None), ckpt_path=ckpt_path)
    assert list(dict(module.named_children())) == ["backbone"]
    assert "training_step" not in vars(module)
    return toys.weights(module) | toys.weights(drop_in.terms), weights_hash(drop_in.teacher)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Results of two ranks: a whole run, and runs resumed after its steps 1 and 2."""
    out = tmp_path_factory.mktemp("two_processes")
    run_two("tests.callbacks.test_distillation_processes", out)
    return [torch.load(out / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_ranks_equal_one_process_and_use_the_teacher_of_rank_0(ranks, tmp_path):
    weights, shown = fit(tmp_path, 1)
    assert shown == weights_hash(teacher(seed=5))
    begun = toys.weights(Theirs()) | toys.weights(distillation().terms)
    for rank in ranks:
        learned, seen = rank["whole"]
        assert seen == shown
        for name, value in weights.items():
            moved = (value - begun[name]).norm()
            assert moved > 0, name
            assert (learned[name] - value).norm() <= 1e-4 * moved, name


def test_resume_on_two_ranks_is_bit_exact(ranks):
    for rank in ranks:
        for again, _ in rank["resumed"]:
            assert toys.same(again, rank["whole"][0])


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    whole = fit(out / "whole", 2)
    resumed = [fit(out / "again", 2, out / "whole" / f"step={step}.ckpt", hint_seed=7) for step in (1, 2)]
    torch.save({"whole": whole, "resumed": resumed}, out / f"rank-{os.environ['LOCAL_RANK']}.pt")
