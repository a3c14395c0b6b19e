"""`Distillation` beside other callbacks and loggers."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EMAWeightAveraging,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning import Term
from kd_lightning.callbacks import Constant, TeacherFreezing, TemperatureSchedule, TermWeightSchedule
from kd_lightning.core.hashing import weights_hash
from kd_lightning.losses import KDLoss
from tests import toys
from tests.callbacks.drop_in import (
    CLASSES,
    FEATURES,
    LR,
    Hint,
    Losses,
    Pair,
    Theirs,
    batches,
    by_hand,
    distillation,
    fit,
    network,
    second,
    teacher,
)

# ---- what is logged


class Logged(Logger):
    """What reaches a logger, step by step."""

    name, version = "logged", 0

    def __init__(self) -> None:
        super().__init__()
        self.values: list[dict[str, float]] = []

    def log_metrics(self, metrics, step=None):
        self.values.append({name: value for name, value in metrics.items() if name != "epoch"})

    def log_hyperparams(self, params, *_):
        pass


def test_terms_are_logged_unweighted_beside_what_they_log(tmp_path):
    fit(Theirs(), distillation(), folder=tmp_path, max_steps=1, logger=(logged := Logged()))
    student, shown, (x, y) = network(), teacher(), batches()[0]
    kd = 9 * functional.kl_div((student(x) / 3).log_softmax(1), (shown(x) / 3).softmax(1), reduction="batchmean")
    hint = functional.mse_loss(Hint().connector(student[:2](x)), shown[:2](x))
    expected = {"train_loss": functional.cross_entropy(student(x), y).item(), "temperature/kd": 3.0}
    expected |= {"train/kd": kd.item(), "train/hint": hint.item()}
    assert logged.values == [pytest.approx(expected, rel=1e-5)]


def test_terms_are_logged_only_at_the_steps_that_are_due(tmp_path):
    module, due = Theirs(), []
    module.log_dict = lambda values, **_: due.append(module.global_step)
    fit(module, distillation(), folder=tmp_path, log_every_n_steps=3)
    assert due == [2, 5]


class LogsTheSame(Theirs):
    def training_step(self, batch, batch_idx):
        self.log("train/kd", torch.tensor(1.0))
        self.log("train/loss", torch.tensor(2.0))
        return super().training_step(batch, batch_idx)


def test_nothing_that_they_log_is_overwritten(tmp_path):
    with pytest.raises(ValueError, match="'train/kd' is logged by LogsTheSame or another term: give the term another"):
        fit(LogsTheSame(), distillation(), folder=tmp_path)
    terms = {"loss": Term(KDLoss())}
    with pytest.raises(ValueError, match="'train/loss' is logged by LogsTheSame"):
        fit(LogsTheSame(), distillation(terms=terms), folder=tmp_path)
    logged = Logged()
    fit(LogsTheSame(), distillation(terms={"soft": Term(KDLoss())}), folder=tmp_path, logger=logged)
    assert {(values["train/kd"], values["train/loss"]) for values in logged.values} == {(1.0, 2.0)}
    with pytest.raises(ValueError, match="'train/kd' is logged by Pair or another term"):
        fit(Pair(), distillation(), second("kd"), folder=tmp_path)


# ---- other callbacks


@pytest.mark.parametrize("order", [1, -1])
def test_schedules_reach_the_terms_in_either_order(order, tmp_path):
    drop_in, losses = distillation(hint=False), Losses()
    schedules = [TemperatureSchedule(Constant(3.0)), TermWeightSchedule("kd", Constant(0.5))]
    drop_in.terms["kd"].weight = 7.0
    drop_in.terms["kd"].loss.temperature = 9.0
    fit(Theirs(), *[drop_in, *schedules][::order], losses, folder=tmp_path, precision="64-true")
    assert losses.found == pytest.approx(by_hand(hint=False)[2], rel=1e-9)


def averaged(decay: float | None) -> dict[str, Tensor]:
    """The average of the student's weights after each of eight steps."""
    average: dict[str, Tensor] = {}
    for steps in range(1, 9):
        student, _, _ = by_hand(precision="32-true", data=(batches() * 2)[:steps], epochs=1)
        share = 1 / steps if decay is None else 1 - decay if steps > 1 else 1
        for name, value in student.state_dict().items():
            average[name] = average.get(name, 0.0) * (1 - share) + share * value
    return average


class Buffered(Theirs):
    """A buffer that comes after all parameters, in the order in which an average is paired with its module."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((3,), 7.0))


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("decay", [None, 0.7])
def test_averages_are_of_their_weights_alone_in_either_order(decay, order, tmp_path):
    average = WeightAveraging() if decay is None else EMAWeightAveraging(decay=decay)
    module, drop_in = Buffered(), distillation()
    before, expected = weights_hash(drop_in.teacher), averaged(decay)
    trainer = fit(module, *[average, drop_in][::order], folder=tmp_path, val=toys.Loader(batches()))
    for _ in range(2):
        for name, value in module.backbone.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(module.mean, torch.full((3,), 7.0))
        trainer.validate(module, toys.Loader(batches()), verbose=False)  # swaps the average in and out again
    assert weights_hash(drop_in.teacher) == before


def normalised() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.Linear(16, CLASSES))


@pytest.mark.filterwarnings("ignore:Swapping scheduler")
def test_averaging_with_new_statistics_leaves_the_teachers_alone(tmp_path):
    class Module(Theirs):
        def __init__(self) -> None:
            super().__init__()
            self.backbone.insert(1, nn.BatchNorm1d(8))

    drop_in = distillation(teacher=normalised(), hint=False)
    drop_in.teacher[1].running_mean += 1
    before = weights_hash(drop_in.teacher)
    fit(Module(), StochasticWeightAveraging(0.01, swa_epoch_start=1), drop_in, folder=tmp_path, max_epochs=3)
    assert weights_hash(drop_in.teacher) == before


class Finetuning(BackboneFinetuning):
    """Two groups of the head's, then the backbone's."""

    def __init__(self) -> None:
        super().__init__(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.01)


@pytest.mark.parametrize("order", [1, -1])
def test_finetuning_and_freezing_of_their_own_go_on(order, tmp_path):
    class Module(Theirs):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(CLASSES, CLASSES)
            self.model = nn.Sequential(self.backbone, self.head)

        def forward(self, x):
            return self.model(x)

        def configure_optimizers(self):
            return torch.optim.SGD(self.head.parameters(), lr=LR)

    module, drop_in = (
        Module(),
        distillation("model", terms={"kd": Term(KDLoss()), "hint": Term(Hint(), 1.0, "0.1", "1")}),
    )
    before = weights_hash(module.backbone)
    trainer = fit(module, *[drop_in, Finetuning(), TeacherFreezing()][::order], folder=tmp_path, max_epochs=2)
    assert weights_hash(module.backbone) != before
    assert [len(group["params"]) for group in trainer.optimizers[0].param_groups] == [2 + 2, 4]
