"""Temperatures and weights follow their schedules at every step, also after a resume."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from kd_lightning import OfflineDistiller, Term
from kd_lightning.callbacks import Constant, Linear, PiecewiseConstant, TemperatureSchedule, TermWeightSchedule
from kd_lightning.losses import KDLoss, TaskLoss
from tests import toys

# a resumed run needs no callback that saves
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")


class Seen(Callback):
    """Temperature and weight in each batch, in order."""

    def __init__(self) -> None:
        self.values: list[tuple[float, float]] = []

    def on_before_backward(self, trainer, pl_module, loss):
        term = pl_module.terms["kd"]
        self.values.append((term.loss.temperature, term.weight))


class Fails(Callback):
    def __init__(self, hook: str, call: int) -> None:
        self.calls = call
        setattr(self, hook, self._count_down)

    def _count_down(self, *_):
        self.calls -= 1
        if not self.calls:
            raise KeyboardInterrupt


def schedules(unit):
    return [
        TemperatureSchedule(Linear(9.0, 1.0, duration=8), unit),
        TermWeightSchedule("kd", PiecewiseConstant({0: 0.25, 1: 0.5, 2: 0.75}), unit),
    ]


def run(folder, unit, *callbacks, ckpt_path=None, val_size=0, **changes):
    seen = Seen()
    trainer = toys.trainer(folder, seen, *schedules(unit), *callbacks, **changes)
    trainer.fit(toys.offline(), toys.data(augmentation=None, val_size=val_size), ckpt_path=ckpt_path)
    return seen.values


# Three epochs of four batches. With three batches a step, the last batch of each epoch is a separate step.
STEPS = {1: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], 3: [0, 0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5]}
EPOCHS = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


def expected(times):
    return [(max(9.0 - t, 1.0), (0.25, 0.5, 0.75)[min(t, 2)]) for t in times]


@pytest.mark.parametrize("unit", ["step", "epoch"])
@pytest.mark.parametrize(
    ("accumulated", "limit"),
    [
        (1, {"max_epochs": 3}),
        (3, {"max_epochs": 3}),
        (1, {"max_epochs": -1, "max_steps": 12}),
        (1, {"max_epochs": -1, "max_steps": 12, "val_size": 16}),
    ],
)
def test_every_batch_has_its_value_after_every_resume(unit, accumulated, limit, tmp_path):
    truth = expected(STEPS[accumulated] if unit == "step" else EPOCHS)
    limit = limit | {"accumulate_grad_batches": accumulated}
    checkpoints = [
        ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1),
        ModelCheckpoint(tmp_path, "epoch-{epoch}", save_top_k=-1, save_on_train_epoch_end=True),
    ]
    assert run(tmp_path, unit, *checkpoints, **limit) == truth
    saved = sorted(tmp_path.glob("*.ckpt"))
    assert len(saved) == 12 // accumulated + (accumulated > 1) * 2 + 3
    for checkpoint in saved:
        values = run(tmp_path, unit, ckpt_path=checkpoint, **limit)
        assert values == truth[12 - len(values) :], checkpoint.name


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_after_backward", "on_train_batch_end"])
@pytest.mark.parametrize("call", [2, 4, 5, 8])
def test_every_batch_has_its_value_after_an_interruption(hook, call, tmp_path):
    truth = expected(STEPS[1])
    save = ModelCheckpoint(tmp_path, save_on_exception=True, save_top_k=0)
    with pytest.raises(SystemExit):
        run(tmp_path, "step", Fails(hook, call), save)
    (saved,) = tmp_path.glob("*.ckpt")
    values = run(tmp_path, "step", ckpt_path=saved)
    assert values == truth[12 - len(values) :]


def test_a_constant_schedule_equals_a_constant_value(tmp_path):
    def trained(temperature, weight, *callbacks):
        terms = {"task": Term(TaskLoss(), 0.5, teacher=None), "kd": Term(KDLoss(temperature), weight)}
        learner = OfflineDistiller(toys.network(seed=1), toys.network(16, seed=2), terms)
        toys.trainer(tmp_path, *callbacks, max_epochs=1).fit(learner, toys.data())
        return toys.weights(learner)

    scheduled = trained(7.0, 0.1, TemperatureSchedule(Constant(2.0)), TermWeightSchedule("kd", Constant(0.8)))
    assert toys.same(scheduled, trained(2.0, 0.8))
    assert not toys.same(scheduled, trained(7.0, 0.1))


class Wrapped(nn.Module):
    """A loss with a loss inside."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.inner = KDLoss(temperature)

    def forward(self, student, teacher, target=None):
        return self.inner(student, teacher)


class Learned(KDLoss):
    """A loss that learns its temperature."""

    def __init__(self) -> None:
        super().__init__()
        del self.temperature
        self.temperature = nn.Parameter(torch.tensor(5.0))


class TheirModule(LightningModule):
    """A user's module with terms at a path of its choice."""

    def __init__(self, **terms: Term) -> None:
        super().__init__()
        self.backbone = toys.network()
        self.box = nn.ModuleDict({"terms": nn.ModuleDict(terms)})

    def training_step(self, batch, batch_idx):
        return self.backbone(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module, *callbacks, folder):
    toys.trainer(folder, *callbacks, max_epochs=1).fit(module, toys.Loader([*toys.data().train_dataloader()]))


def test_temperatures_are_set_within_losses_of_any_module_except_learned_ones(tmp_path):
    terms = {"a": Term(KDLoss(3.0)), "b": Term(Wrapped(3.0)), "c": Term(Learned()), "d": Term(TaskLoss(), teacher=None)}
    fit(TheirModule(**terms), TemperatureSchedule(Constant(2.0)), folder=tmp_path)
    assert terms["a"].loss.temperature == 2.0
    assert terms["b"].loss.inner.temperature == 2.0
    assert isinstance(terms["c"].loss.temperature, nn.Parameter)


def test_one_term_is_scheduled_by_its_name(tmp_path):
    terms = {"a": Term(KDLoss(3.0), 0.5), "b": Term(KDLoss(3.0), 0.5)}
    callbacks = [TemperatureSchedule(Constant(2.0), term="b"), TermWeightSchedule("a", Constant(0.0))]
    fit(TheirModule(**terms), *callbacks, folder=tmp_path)
    assert [(term.loss.temperature, term.weight) for term in terms.values()] == [(3.0, 0.0), (2.0, 0.5)]


@pytest.mark.parametrize(
    ("callback", "complaint"),
    [
        (TemperatureSchedule(Constant(2.0), term="kdd"), "no term 'kdd'.*nearest names are kd"),
        (TemperatureSchedule(Constant(2.0), term="task"), "no loss of task has a temperature"),
        (TermWeightSchedule("hint", Constant(2.0)), "no term 'hint'.*nearest names are task, kd"),
    ],
)
def test_a_schedule_without_a_term_raises_before_the_first_step(callback, complaint, tmp_path):
    learner = toys.offline()
    before = toys.weights(learner)
    with pytest.raises(ValueError, match=complaint):
        fit(learner, callback, folder=tmp_path)
    assert toys.same(toys.weights(learner), before)


def test_a_module_without_terms_or_temperatures_raises(tmp_path):
    with pytest.raises(ValueError, match="TheirModule has no terms"):
        fit(TheirModule(), TemperatureSchedule(Constant(2.0)), folder=tmp_path)
    with pytest.raises(ValueError, match="no loss of task has a temperature"):
        fit(toys.classifier(), TemperatureSchedule(Constant(2.0)), folder=tmp_path)
