"""One `Distillation` in several fits: each fold starts as the first one did, and the teacher stays as it came."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning import Term, UsageError, freeze
from kd_lightning.callbacks import Distillation
from kd_lightning.losses import CRDLoss, KDLoss
from tests import toys
from tests.callbacks.drop_in import CLASSES, FEATURES, Theirs, batches, distillation, fit, teacher


def contrastive() -> Distillation:
    """A drop-in with a memory bank and two connectors."""
    torch.manual_seed(3)
    loss = CRDLoss(student_channels=8, teacher_channels=16, num_samples=24, dim=4, negatives=8)
    address: dict[str, Any] = {"student": "1", "teacher": "1", "target": ["target", "index"]}
    return Distillation("backbone", teacher(), {"crd": Term(loss, weight=0.1, **address)})


def numbered() -> list[Any]:
    return [(x, y, torch.arange(6 * i, 6 * i + 6)) for i, (x, y) in enumerate(batches())]


@pytest.mark.parametrize(("build", "data"), [(distillation, batches), (contrastive, numbered)], ids=["hint", "memory"])
def test_each_fold_starts_as_the_first_one(build, data, tmp_path):
    torch.manual_seed(0)
    reused, found = build(), []
    for _ in range(3):
        for drop_in in (reused, build()):
            torch.manual_seed(7)
            module = Theirs()
            fit(module, drop_in, folder=tmp_path, data=data())
            found.append(
                toys.weights(module) | {f"terms.{k}": v.clone() for k, v in drop_in.terms.state_dict().items()}
            )
    assert all(toys.same(found[0], other) for other in found[1:])


class Starts(Callback):
    """Keeps the terms with which each fit starts."""

    def __init__(self, drop_in: Distillation) -> None:
        self.drop_in, self.found = drop_in, []

    def on_train_start(self, *_: Any) -> None:
        self.found.append(state(self.drop_in))


def state(drop_in: Distillation) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in drop_in.terms.state_dict().items()}


def test_another_fit_of_the_same_module_goes_on(tmp_path):
    module, drop_in = Theirs(), distillation()
    fit(module, drop_in, folder=tmp_path)
    left, starts = state(drop_in), Starts(drop_in)
    fit(module, drop_in, starts, folder=tmp_path)
    assert toys.same(starts.found[0], left)


def test_one_trainer_goes_on_with_more_epochs(tmp_path):
    module, drop_in = Theirs(), distillation()
    trainer = fit(module, drop_in, starts := Starts(drop_in), folder=tmp_path)
    left = state(drop_in)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, toys.Loader(batches()))
    assert trainer.current_epoch == 4
    assert toys.same(starts.found[1], left)
    assert not toys.same(starts.found[1], starts.found[0])


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resume_in_a_later_fold_has_the_checkpoints_weights(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "first", "{step}", every_n_train_steps=1, save_top_k=-1)
    module, drop_in = Theirs(), distillation()
    fit(module, drop_in, checkpoint, folder=tmp_path)
    resumed = Theirs()
    trainer = toys.trainer(
        tmp_path, drop_in, ModelCheckpoint(tmp_path / "second", every_n_train_steps=1, save_top_k=-1), max_epochs=2
    )
    trainer.fit(resumed, toys.Loader(batches()), ckpt_path=tmp_path / "first/step=4.ckpt")
    assert toys.same(toys.weights(module), toys.weights(resumed))


def test_weights_that_were_set_between_two_fits_stay(tmp_path):
    drop_in = distillation()
    fit(Theirs(), drop_in, folder=tmp_path)
    trained = {name: value + 1 for name, value in state(drop_in).items()}
    drop_in.terms.load_state_dict(trained)
    starts = Starts(drop_in)
    for _ in range(2):  # and are what a later fold starts with
        fit(Theirs(), drop_in, starts, folder=tmp_path)
        assert toys.same(starts.found[-1], trained)


def test_folds_with_an_average_of_the_weights(tmp_path):
    reused, found = distillation(), []
    for drop_in in (reused, reused, distillation()):
        module = Theirs()
        fit(module, drop_in, StochasticWeightAveraging(0.01, swa_epoch_start=1), folder=tmp_path, max_epochs=3)
        found.append(toys.weights(module))
    assert toys.same(found[0], found[1])
    assert toys.same(found[0], found[2])


def test_a_fold_after_a_failed_one(tmp_path):
    class Fails(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                raise RuntimeError("no more")

    drop_in, module, fresh = distillation(), Theirs(), Theirs()
    with pytest.raises(RuntimeError, match="no more"):
        fit(Theirs(), drop_in, Fails(), folder=tmp_path)
    fit(module, drop_in, folder=tmp_path)
    fit(fresh, distillation(), folder=tmp_path)
    assert toys.same(toys.weights(module), toys.weights(fresh))


def test_the_callback_is_pickled_and_copied_with_its_state(tmp_path):
    drop_in = distillation()
    fit(Theirs(), drop_in, folder=tmp_path)
    found = []
    for each in (pickle.loads(pickle.dumps(drop_in)), copy.deepcopy(drop_in), distillation()):
        module = Theirs()
        fit(module, each, folder=tmp_path)
        found.append(toys.weights(module))
    assert toys.same(found[0], found[1])
    assert toys.same(found[0], found[2])


class LazyHint(nn.Module):
    """A loss whose connector takes its width from the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.connector = nn.LazyLinear(16)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        return functional.mse_loss(self.connector(student), teacher)


# torch says of each lazy layer that it may change
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_a_lazy_connector_learns_and_goes_on_but_serves_one_module_alone(tmp_path):
    def lazy() -> Distillation:
        return distillation(terms={"hint": Term(LazyHint(), student="1", teacher="1")})

    module, drop_in = Theirs(), lazy()
    fit(module, drop_in, folder=tmp_path, max_steps=1)
    left = state(drop_in)
    fit(module, drop_in, starts := Starts(drop_in), folder=tmp_path)
    assert toys.same(starts.found[0], left)
    assert not toys.same(state(drop_in), left)
    other, like = Theirs(), set(vars(Theirs()))
    with pytest.raises(UsageError, match=r"lazy layers, .*: build Distillation anew for each module"):
        fit(other, drop_in, folder=tmp_path)
    assert "training_step" not in set(vars(other)) - like
    assert all(parameter.requires_grad for parameter in drop_in.teacher.parameters())
    fit(other, lazy(), folder=tmp_path)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_a_fit_that_failed_before_a_lazy_connector_had_weights_leaves_none(tmp_path):
    class Fails(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            raise RuntimeError("no more")

    drop_in = distillation(terms={"hint": Term(LazyHint(), student="1", teacher="1")})
    with pytest.raises(RuntimeError, match="no more"):
        fit(Theirs(), drop_in, Fails(), folder=tmp_path)
    fit(Theirs(), drop_in, folder=tmp_path)


CONTINUES = "Theirs has other weights than .* connectors of its terms continue"


def test_folds_that_give_one_module_its_first_weights_again_are_warned_of(tmp_path):
    module, drop_in = Theirs(), distillation()
    first = copy.deepcopy(module.state_dict())
    fit(module, drop_in, folder=tmp_path)
    module.load_state_dict(first)
    with pytest.warns(UserWarning, match=CONTINUES):
        fit(module, drop_in, folder=tmp_path)


def test_other_weights_without_connectors_are_no_fault(tmp_path):
    module, drop_in = Theirs(), distillation(hint=False)
    first = copy.deepcopy(module.state_dict())
    for _ in range(2):  # warnings are errors
        module.load_state_dict(first)
        fit(module, drop_in, folder=tmp_path)


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true"])
def test_a_fit_of_more_epochs_is_not_warned_of(precision, tmp_path):
    module, drop_in = Theirs(), distillation()
    for _ in range(2):  # warnings are errors
        swa = StochasticWeightAveraging(0.01, swa_epoch_start=1)
        trainer = fit(module, drop_in, swa, folder=tmp_path, precision=precision)
        trainer.validate(module, toys.Loader(batches()), verbose=False)


# ---- the teacher is as it came


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true", "bf16-mixed"])
def test_the_teacher_has_its_own_type_and_bits_after_a_fit(precision, tmp_path):
    network = teacher()
    before = toys.weights(network)
    drop_in = distillation(teacher=network, hint=False)
    fit(Theirs(), drop_in, folder=tmp_path, precision=precision)
    assert drop_in.teacher is network
    assert toys.same(before, toys.weights(network))
    assert all(parameter.requires_grad for parameter in network.parameters())


class Located(nn.Linear):
    """A network that is told where to be, as on a machine with several devices."""

    moves: list[str]

    def to(self, *args: Any, **kwargs: Any) -> Any:
        self.moves = [*getattr(self, "moves", []), str(args[0])]
        return self


def test_the_teacher_returns_to_its_device(tmp_path, monkeypatch):
    network = Located(FEATURES, CLASSES)
    drop_in = Distillation("backbone", network, {"kd": Term(KDLoss(3.0))})
    prepare = drop_in.held.prepare

    def from_a_gpu(*args: Any) -> None:
        prepare(*args)
        drop_in.held._device = torch.device("cuda:1")  # where it would have been

    monkeypatch.setattr(drop_in.held, "prepare", from_a_gpu)
    fit(Theirs(), drop_in, folder=tmp_path)
    assert network.moves == ["cpu", "cuda:1"]


def test_a_teacher_that_was_frozen_between_two_fits_stays_frozen(tmp_path):
    network = teacher()
    drop_in = distillation(teacher=network, hint=False)
    fit(Theirs(), drop_in, folder=tmp_path)
    assert all(layer.training for layer in network.modules())
    freeze(network)
    fit(Theirs(), drop_in, folder=tmp_path)
    assert not any(layer.training for layer in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_modes_of_a_teacher_are_those_before_each_fit(tmp_path):
    network = teacher()
    drop_in = distillation(teacher=network, hint=False)
    fit(Theirs(), drop_in, folder=tmp_path)
    network[1].eval()
    network[0].requires_grad_(False)
    fit(Theirs(), drop_in, folder=tmp_path)
    assert [layer.training for layer in network] == [True, False, True]
    assert [parameter.requires_grad for parameter in network.parameters()] == [False, False, True, True]


def test_a_fit_that_fails_early_leaves_the_teacher_where_it_is(tmp_path):
    class Fails(Callback):
        def setup(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("no more")

    network = Located(FEATURES, CLASSES)
    drop_in = Distillation("backbone", network, {"kd": Term(KDLoss(3.0))})
    fit(Theirs(), drop_in, folder=tmp_path)
    network.moves = []
    with pytest.raises(RuntimeError, match="no more"):
        fit(Theirs(), drop_in, Fails(), folder=tmp_path)
    assert network.moves == []
