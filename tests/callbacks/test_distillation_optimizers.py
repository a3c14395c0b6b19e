"""The connectors of a `Distillation` join the optimizer and the scheduler of the module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

from kd_lightning.core.hashing import weights_hash
from tests.callbacks.drop_in import LR, Theirs, assert_same, by_hand, distillation, fit


def halving(optimizer: Any) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: 0.5**step)


def one_cycle(optimizer: Any) -> OneCycleLR:
    return OneCycleLR(optimizer, max_lr=LR, total_steps=9)


def each_step(scheduler: Any) -> dict[str, Any]:
    return {"scheduler": scheduler, "interval": "step"}


FORMS = {
    "optimizer": (lambda o: o, None),
    "list": (lambda o: [o], None),
    "tuple": (lambda o: (o,), None),
    "two lists": (lambda o: ([o], [each_step(halving(o))]), halving),
    "two lists, one cycle": (lambda o: ([o], [each_step(one_cycle(o))]), one_cycle),
    "dict": (lambda o: {"optimizer": o}, None),
    "dict with config": (lambda o: {"optimizer": o, "lr_scheduler": each_step(halving(o))}, halving),
    "dict, one cycle": (lambda o: {"optimizer": o, "lr_scheduler": each_step(one_cycle(o))}, one_cycle),
    "list of dicts": (lambda o: [{"optimizer": o, "lr_scheduler": each_step(one_cycle(o))}], one_cycle),
    "dict with plateau": (
        lambda o: {
            "optimizer": o,
            "lr_scheduler": {"scheduler": ReduceLROnPlateau(o, patience=99), "monitor": "train_loss"},
        },
        None,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_connectors_join_their_optimizer_in_each_form_that_lightning_allows(form, tmp_path):
    configured, schedule = FORMS[form]

    class Module(Theirs):
        def configure_optimizers(self):
            return configured(super().configure_optimizers())

    module, drop_in = Module(), distillation()
    trainer = fit(module, drop_in, folder=tmp_path, precision="64-true")
    student, connector, _ = by_hand(schedule=schedule)
    assert_same(module.backbone, student)
    assert_same(drop_in.terms["hint"].loss.connector, connector)
    (group,) = trainer.optimizers[0].param_groups
    assert len(group["params"]) == 4 + 2


class PlainScheduler(Theirs):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return {"optimizer": optimizer, "lr_scheduler": halving(optimizer)}


def test_a_plain_scheduler_in_a_dict_moves_at_each_epoch(tmp_path):
    trainer = fit(PlainScheduler(), distillation(), folder=tmp_path)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(LR / 4)


class TwoGroups(Theirs):
    def configure_optimizers(self):
        assert list(self.children()) == [self.backbone]  # nothing is seen here but what is theirs
        groups = [{"params": self.backbone[0].parameters()}, {"params": self.backbone[2].parameters(), "lr": 0.0}]
        return torch.optim.AdamW(groups, lr=0.01)


def test_the_first_of_several_groups_is_joined(tmp_path):
    trainer = fit(TwoGroups(), drop_in := distillation(), folder=tmp_path)
    first, second = trainer.optimizers[0].param_groups
    assert [parameter is ours for parameter, ours in zip(first["params"][2:], drop_in.terms.parameters(), strict=True)]
    assert len(second["params"]) == 2


OPTIMIZERS = {
    "AdamW": lambda module: torch.optim.AdamW(module.parameters(), lr=0.01),
    "named": lambda module: torch.optim.Adam(module.named_parameters(), lr=0.01),
    "RMSprop": lambda module: torch.optim.RMSprop(module.parameters(), lr=0.01),
    "LBFGS": lambda module: torch.optim.LBFGS(module.parameters(), lr=0.1, max_iter=3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_trains_the_connectors_too(name, tmp_path):
    class Module(Theirs):
        def configure_optimizers(self):
            return OPTIMIZERS[name](self)

    drop_in = distillation()
    before = weights_hash(drop_in.terms)
    trainer = fit(Module(), drop_in, folder=tmp_path)
    assert weights_hash(drop_in.terms) != before
    (group,) = trainer.optimizers[0].param_groups
    assert len(group.get("param_names", group["params"])) == len(group["params"]) == 6


def test_an_optimizer_that_is_kept_from_fit_to_fit_is_joined_once(tmp_path):
    class Module(Theirs):
        def __init__(self) -> None:
            super().__init__()
            self.kept = torch.optim.SGD(self.parameters(), lr=LR)

        def configure_optimizers(self):
            return self.kept

    module, drop_in = Module(), distillation()
    for _ in range(2):
        fit(module, drop_in, folder=tmp_path)
    assert len(module.kept.param_groups[0]["params"]) == 6
