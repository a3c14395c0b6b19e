from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_lightning import OfflineDistiller, Term
from kd_lightning.losses import KDLoss
from kd_lightning.schemes import MutualLearning
from tests import found, toys
from tests.callbacks import drop_in


class WithHead(nn.Module):
    """A network with a head that its output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.head = drop_in.network(), nn.Linear(drop_in.CLASSES, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.auxiliary = self.head(logits := self.body(x))
        return logits


class Idle(nn.Module):
    """A loss with a connector that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.connector = nn.Linear(4, 4, bias=False)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        return (student - teacher).square().mean()


def fit_learner(folder: Any, student: nn.Module, loss: nn.Module, **changes: Any) -> None:
    learner = OfflineDistiller(student, drop_in.teacher(), {"t": Term(loss)})
    toys.trainer(folder, max_epochs=1, **changes).fit(learner, toys.Loader(drop_in.batches()))


def fit_drop_in(folder: Any, student: nn.Module, loss: nn.Module, **changes: Any) -> None:
    module = drop_in.Theirs()
    module.backbone = student
    callback = drop_in.distillation(terms={"t": Term(loss)})
    toys.trainer(folder, callback, max_epochs=1, **changes).fit(module, toys.Loader(drop_in.batches()))


both_ways = pytest.mark.parametrize("fit", [fit_learner, fit_drop_in], ids=["learner", "drop-in"])


def messages(run: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(each.message) for each in caught if "have no gradient" in str(each.message)]


@both_ways
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_head_that_nothing_trains_is_named_once(fit, accumulated, tmp_path):
    changes = {"accumulate_grad_batches": accumulated}
    (message,) = messages(lambda: fit(tmp_path, WithHead(), KDLoss(2.0), **changes))
    assert message.startswith("2 of 6 parameters")
    assert "head.weight" in message
    assert "head.bias" in message


@both_ways
def test_a_connector_that_nothing_trains_is_named(fit, tmp_path):
    (message,) = messages(lambda: fit(tmp_path, drop_in.network(), Idle()))
    assert "loss.connector.weight" in message


@both_ways
def test_a_head_that_is_frozen_or_trained_is_no_fault(fit, tmp_path):
    frozen = WithHead()
    frozen.head.requires_grad_(False)
    assert messages(lambda: fit(tmp_path, frozen, KDLoss(2.0))) == []
    assert messages(lambda: fit(tmp_path, drop_in.network(), KDLoss(2.0))) == []


def test_many_parameters_are_counted(tmp_path):
    learner = MutualLearning(WithHead(), [WithHead(), WithHead()], {"kd": Term(KDLoss(2.0))})
    fit = toys.trainer(tmp_path, max_epochs=1).fit
    (message,) = messages(lambda: fit(learner, toys.Loader(drop_in.batches())))
    assert message.startswith("6 of 18 parameters")
    assert "and 3 more" in message


@pytest.mark.parametrize("name", found.cases())
def test_every_scheme_trains_all_its_parameters(name, tmp_path):
    case = found.cases()[name]()
    run = toys.trainer(tmp_path, *case.callbacks, max_steps=2 * case.learner.optimizer_steps_per_batch)
    assert messages(lambda: run.fit(case.learner, (case.data or toys.data)(batch_size=32))) == []
