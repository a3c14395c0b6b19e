"""A user's module that the tests of `Distillation` distil in, and the run of a fit."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning import Term
from kd_lightning.callbacks import Distillation
from kd_lightning.losses import KDLoss
from tests import toys

FEATURES, CLASSES, LR = 12, 5, 0.1


def network(width: int = 8, seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, width), nn.Tanh(), nn.Linear(width, CLASSES))


def teacher() -> nn.Sequential:
    return network(16, seed=2)


class Hint(nn.Module):
    """A loss that learns: the student's layer, mapped to the teacher's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.connector = nn.Linear(8, 16)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        return functional.mse_loss(self.connector(student), teacher)


def distillation(student: str = "backbone", hint: bool = True, **changes: Any) -> Distillation:
    terms = {"kd": Term(KDLoss(3.0), weight=0.5)}
    if hint:
        terms["hint"] = Term(Hint(), weight=2.0, student="1", teacher="1")
    return Distillation(**{"student": student, "teacher": teacher(), "terms": terms} | changes)


class Theirs(LightningModule):
    """Someone's own: nothing in it knows of us."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = network(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=LR, momentum=0.9)


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(6, FEATURES, generator=generator), torch.randint(CLASSES, (6,), generator=generator))
        for _ in range(count)
    ]


def fit(module: LightningModule, *callbacks: Callback, folder: Any, data: Any = None, val: Any = None, **changes: Any):
    trainer = toys.trainer(folder, *callbacks, **{"max_epochs": 2} | changes)
    trainer.fit(module, toys.Loader(batches() if data is None else data), val)
    return trainer


def by_hand(
    epochs: int = 2,
    accumulated: int = 1,
    clip: float | None = None,
    precision: str = "64-true",
    schedule: Any = None,
    hint: bool = True,
    data: Any = None,
) -> tuple[nn.Module, nn.Module, list[float]]:
    """The student, the connector and each batch's loss of a run in plain torch."""
    student, shown, connector = network(), teacher(), Hint().connector
    if precision == "64-true":
        student, shown, connector = student.double(), shown.double(), connector.double()
    parameters = [*student.parameters(), *(connector.parameters() if hint else ())]
    optimizer = torch.optim.SGD(parameters, lr=LR, momentum=0.9)
    scheduler = schedule(optimizer) if schedule else None
    found = []
    for number, (x, y) in enumerate((batches() if data is None else data) * epochs):
        x = x.to(student[0].weight.dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            hidden, guide = student[:2](x), shown[:2](x).detach()
            logits, soft = student[2](hidden), (shown[2](guide).detach().to(student[0].weight.dtype) / 3).softmax(1)
            loss = functional.cross_entropy(logits, y)
            with torch.autocast("cpu", enabled=False):
                loss = loss + 0.5 * 9 * (soft * (soft.log() - (logits.to(soft.dtype) / 3).log_softmax(1))).sum() / len(
                    x
                )
            if hint:
                loss = loss + 2.0 * functional.mse_loss(connector(hidden), guide)
        found.append(loss.item())
        (loss / accumulated).backward()
        if (number + 1) % accumulated == 0:
            if clip:
                nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
            optimizer.zero_grad()
            if scheduler:
                scheduler.step()
    return student, connector, found


class Losses(Callback):
    """What Lightning minimises, batch by batch."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_before_backward(self, trainer, pl_module, loss):
        self.found.append(loss.item() * trainer.accumulate_grad_batches)


def assert_same(ours: nn.Module, theirs: nn.Module, **tolerance: float) -> None:
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, **tolerance or {"rtol": 1e-9, "atol": 1e-12})


class Pair(Theirs):
    def __init__(self) -> None:
        super().__init__()
        self.second = network(8, seed=4)

    def training_step(self, batch, batch_idx):
        first = super().training_step(batch, batch_idx)
        return first + functional.cross_entropy(self.second(batch[0]), batch[1])


def second(name: str = "kd2") -> Distillation:
    return distillation("second", teacher=network(16, seed=5), terms={name: Term(KDLoss(2.0))})
