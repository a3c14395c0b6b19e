"""A student on its teacher's frozen layers: what neither learns may be shared, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning import Learner, OfflineDistiller, Term, UsageError, load_teacher
from kd_lightning.callbacks import Distillation
from kd_lightning.losses import AdversarialLoss, KDLoss, TaskLoss
from kd_lightning.schemes import AdversarialDistiller
from tests import toys


class Adapted(nn.Module):
    """A base plus a low-rank change of its logits."""

    def __init__(self, base: nn.Module, rank: int = 2) -> None:
        super().__init__()
        self.base = base
        self.down, self.up = nn.Linear(8, rank, bias=False), nn.Linear(rank, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))


def terms() -> dict[str, Term]:
    return {"task": Term(TaskLoss(), teacher=None), "kd": Term(KDLoss(2.0))}


def batches() -> toys.Loader:
    generator = torch.Generator().manual_seed(0)
    return toys.Loader([(torch.randn(6, 8, generator=generator), torch.arange(6) % 4) for _ in range(3)])


class Host(LightningModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.backbone = network

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.backbone(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.5)


def offline(student: nn.Module, teacher: nn.Module) -> Learner:
    return OfflineDistiller(student, teacher, terms(), optimizer=lambda p: torch.optim.SGD(p, lr=0.5))


def adversarial(student: nn.Module, teacher: nn.Module) -> Learner:
    return AdversarialDistiller(student, teacher, terms() | {"gan": Term(AdversarialLoss(nn.Linear(4, 1)))})


def fit_learner(build: Callable[..., Learner]) -> Callable[..., None]:
    return lambda student, teacher, folder: toys.trainer(folder, max_epochs=1).fit(build(student, teacher), batches())


def fit_drop_in(student: nn.Module, teacher: nn.Module, folder: Any) -> None:
    trainer = toys.trainer(folder, max_epochs=1)
    trainer.callbacks.append(Distillation("backbone", teacher, {"kd": Term(KDLoss(2.0))}))
    trainer.fit(Host(student), batches())


every_way = pytest.mark.parametrize(
    "fit", [fit_learner(offline), fit_learner(adversarial), fit_drop_in], ids=["offline", "adversarial", "drop-in"]
)


def frozen(folder: Any) -> nn.Module:
    return network().requires_grad_(False)


def loaded(folder: Any) -> nn.Module:
    torch.save(network().state_dict(), folder / "base.pt")
    return load_teacher(network(1), folder / "base.pt")


@every_way
@pytest.mark.parametrize("base", [frozen, loaded])
def test_adapters_on_a_frozen_base_learn_from_the_base_itself(fit, base, tmp_path):
    shared = base(tmp_path)
    before = {name: value.clone() for name, value in shared.state_dict().items()}
    student = Adapted(shared)
    adapters = student.up.weight.clone()
    fit(student, shared, tmp_path)
    assert toys.same(shared.state_dict(), before)  # its running statistics, too
    assert not torch.equal(student.up.weight, adapters)
    assert [name for name in student.state_dict() if name.startswith("base.")] == [f"base.{name}" for name in before]
    Adapted(network(2)).load_state_dict(student.state_dict())


@every_way
def test_what_the_student_learns_is_never_shared(fit, tmp_path):
    for base in (network(), nn.Sequential(network(), nn.Identity())):
        with pytest.raises(UsageError, match=r"share parameters that learn \(6, the first 'base") as refusal:
            fit(Adapted(base), base, tmp_path)
        assert "requires_grad_(False)" in str(refusal.value)
        assert "\n" not in str(refusal.value)
    half = network()
    half[0].requires_grad_(False)
    with pytest.raises(UsageError, match=r"share parameters that learn \(4, the first 'base.1.weight'"):
        fit(Adapted(half), half, tmp_path)


@every_way
def test_a_student_with_nothing_left_to_learn_is_refused(fit, tmp_path):
    base = network().requires_grad_(False)
    with pytest.raises(UsageError, match="every one of the student is frozen, so that nothing learns"):
        fit(nn.Sequential(base), base, tmp_path)
    student = Adapted(base).requires_grad_(False)
    with pytest.raises(UsageError, match="every one of the student is frozen, so that nothing learns"):
        fit(student, base, tmp_path)


def test_a_second_fit_of_the_drop_in_checks_what_learns_then(tmp_path):
    base = network().requires_grad_(False)
    student, teacher = Adapted(base), base
    callback = Distillation("backbone", teacher, {"kd": Term(KDLoss(2.0))})
    for learns in (False, True):
        base.requires_grad_(learns)
        trainer = toys.trainer(tmp_path, max_epochs=1)
        trainer.callbacks.append(callback)
        if learns:
            with pytest.raises(UsageError, match="share parameters that learn"):
                trainer.fit(Host(student), batches())
        else:
            trainer.fit(Host(student), batches())
            assert not any(parameter.requires_grad for parameter in base.parameters())
