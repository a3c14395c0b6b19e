"""Labels that hold together, one binary label and real values: schemes, drop-in and evaluation, against plain torch."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning import Classifier, OfflineDistiller, Term
from kd_lightning.callbacks import Distillation
from kd_lightning.core.metrics import classification_metrics
from kd_lightning.losses import (
    BernoulliKDLoss,
    BinaryTaskLoss,
    KDLoss,
    LogitMSELoss,
    RegressionTaskLoss,
    SoftCrossEntropyLoss,
    TaskLoss,
    bernoulli_kd_loss,
)
from tests import toys

DRAW = torch.Generator().manual_seed(0)


def linear(outputs: int, seed: int, *after: nn.Module) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, outputs), *after)


def pixels(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Conv2d(1, 1, 3, padding=1)


class Kind(NamedTuple):
    student: nn.Module
    teacher: nn.Module
    x: Tensor
    y: Tensor


def several(*shape: int) -> Tensor:
    return torch.randint(2, shape, generator=DRAW)


X = torch.randn(6, 8, generator=DRAW)
IMAGES = torch.randn(3, 1, 4, 4, generator=DRAW)
UNKNOWN = several(3, 4, 4).masked_fill(torch.rand(3, 4, 4, generator=DRAW) < 0.3, -100)
BINARY = {
    "several labels": Kind(linear(5, 1), linear(5, 2), X, several(6, 5)),
    "labels as floats": Kind(linear(5, 1), linear(5, 2), X, several(6, 5).float()),
    "labels as booleans": Kind(linear(5, 1), linear(5, 2), X, several(6, 5).bool()),
    "one logit": Kind(linear(1, 1), linear(1, 2), X, several(6)),
    "one logit, labels (N, 1)": Kind(linear(1, 1), linear(1, 2), X, several(6, 1).float()),
    "logits (N,)": Kind(linear(1, 1, nn.Flatten(0)), linear(1, 2, nn.Flatten(0)), X, several(6)),
    "tokens": Kind(linear(5, 1), linear(5, 2), torch.randn(2, 3, 8, generator=DRAW), several(2, 3, 5)),
    "pixels": Kind(pixels(1), pixels(2), IMAGES, several(3, 4, 4)),
    "pixels, of which some are unknown": Kind(pixels(1), pixels(2), IMAGES, UNKNOWN),
}
VALUES = {
    "one value": Kind(linear(1, 1), linear(1, 2), X, torch.randn(6, generator=DRAW)),
    "values": Kind(linear(3, 1), linear(3, 2), X, torch.randn(6, 3, generator=DRAW)),
    "outputs (N,)": Kind(linear(1, 1, nn.Flatten(0)), linear(1, 2, nn.Flatten(0)), X, torch.randn(6, generator=DRAW)),
    "a value a pixel": Kind(pixels(1), pixels(2), IMAGES, torch.randn(3, 4, 4, generator=DRAW)),
}


class Host(LightningModule):
    """Someone's own module."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.backbone = network

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return 0 * self.backbone(batch[0]).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def losses(kind: Kind, terms: dict[str, Term], folder: Any) -> list[dict[str, float]]:
    """Of a scheme, of the drop-in, and of validation."""
    learner = OfflineDistiller(kind.student, kind.teacher, terms)
    found = {name: value.item() for name, value in learner.compute_losses((kind.x, kind.y)).items()}
    batches = toys.Loader([(kind.x, kind.y)])
    trainer = toys.trainer(folder, max_steps=1)
    trainer.callbacks.append(Distillation("backbone", kind.teacher, terms))
    trainer.fit(Host(kind.student), batches)
    (measured,) = toys.trainer(folder).validate(learner, batches, verbose=False)
    return [found, {name: trainer.callback_metrics[f"train/{name}"].item() for name in terms}, measured]


@pytest.mark.parametrize("name", BINARY)
def test_binary_labels(name: str, tmp_path):
    kind = BINARY[name]
    terms = {"task": Term(BinaryTaskLoss(), teacher=None), "kd": Term(BernoulliKDLoss(2.0))}
    learner, drop_in, measured = losses(kind, terms, tmp_path)
    z, t = kind.student(kind.x).detach(), kind.teacher(kind.x).detach()
    y = kind.y.reshape(z.shape)
    known = y != -100
    nll = F.binary_cross_entropy_with_logits(z[known], y[known].float()).item()
    kd = bernoulli_kd_loss(z[known], t[known], 2.0).item()
    assert learner == pytest.approx({"task": nll, "kd": kd}, rel=1e-5)
    assert drop_in == pytest.approx(learner, rel=1e-5)
    right = ((z > 0) == (y > 0))[known].float().mean().item()
    assert measured == pytest.approx({"val/acc": right, "val/nll": nll}, rel=1e-5)


@pytest.mark.parametrize("name", VALUES)
def test_real_values(name: str, tmp_path):
    kind = VALUES[name]
    terms = {"task": Term(RegressionTaskLoss(), teacher=None)}
    if kind.x.dim() == 2:
        terms["kd"] = Term(LogitMSELoss())
    learner, drop_in, measured = losses(kind, terms, tmp_path)
    z, t = kind.student(kind.x).detach(), kind.teacher(kind.x).detach()
    error = z - kind.y.reshape(z.shape)
    assert learner["task"] == pytest.approx(error.square().mean().item())
    if "kd" in terms:
        assert learner["kd"] == pytest.approx((z - t).square().mean().item())
    assert drop_in == pytest.approx(learner)
    mae = error.abs().mean().item()
    assert measured == pytest.approx({"val/mse": learner["task"], "val/mae": mae}, rel=1e-5)


HELD_TOGETHER = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 1, 0, 1]] * 2)


@pytest.mark.parametrize("loss", [KDLoss(), SoftCrossEntropyLoss()], ids=["kd", "soft cross-entropy"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bool])
def test_distributions_over_classes_are_refused_beside_labels_that_hold_together(loss, dtype, tmp_path):
    kind = Kind(linear(5, 1), linear(5, 2), X, HELD_TOGETHER.to(dtype))
    refusal = r"term 'kd': .* compares distributions over classes .* use BernoulliKDLoss"
    with pytest.raises(ValueError, match=refusal):
        OfflineDistiller(kind.student, kind.teacher, {"kd": Term(loss)}).compute_losses((kind.x, kind.y))
    with pytest.raises(ValueError, match=refusal):
        losses(kind, {"task": Term(BinaryTaskLoss(), teacher=None), "kd": Term(loss)}, tmp_path)


def test_soft_labels_and_one_hot_ones_are_distributions():
    for y in (torch.eye(5)[several(6) + 1], torch.randn(6, 5, generator=DRAW).softmax(1)):
        OfflineDistiller(linear(5, 1), linear(5, 2), {"kd": Term(KDLoss())}).compute_losses((X, y))


def test_evaluation_of_classes_refuses_labels_that_hold_together(tmp_path):
    learner = Classifier(linear(5, 1), {"task": Term(TaskLoss(), teacher=None)}, metrics=classification_metrics())
    with pytest.raises(ValueError, match=r"rows that do not sum to 1.*BinaryTaskLoss"):
        toys.trainer(tmp_path).validate(learner, toys.Loader([(X, HELD_TOGETHER)]), verbose=False)
