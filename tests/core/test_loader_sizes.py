from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, TensorDataset

from kd_lightning import Classifier, OfflineDistiller, Term, UsageError
from kd_lightning.core.loader_sizes import LoaderSizes, last_size
from kd_lightning.data.loaders import TrainLoader
from kd_lightning.data.sources.base import LabeledImages
from kd_lightning.losses import KDLoss, RKDLoss, TaskLoss
from kd_lightning.schemes import MutualLearning
from tests import toys
from tests.callbacks import drop_in

SAMPLES = 9


def dataset(samples: int = SAMPLES, *shape: int) -> TensorDataset:
    return TensorDataset(torch.randn(samples, *(shape or (drop_in.FEATURES,))), torch.arange(samples) % drop_in.CLASSES)


def loader(samples: int = SAMPLES, batch_size: int = 4, **changes: Any) -> DataLoader[Any]:
    return DataLoader(dataset(samples), batch_size=batch_size, **changes)


def student(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(drop_in.FEATURES, 8), *layers, nn.Linear(8, drop_in.CLASSES))


def comparing(loss: nn.Module) -> Term:
    return Term(loss, student="0", teacher="0")


def fit_learner(folder: Any, student: nn.Module, data: Any, term: Term | None = None, **changes: Any) -> Any:
    learner = OfflineDistiller(student, drop_in.teacher(), {"t": term or Term(KDLoss(3.0))})
    return run(folder, learner, data, **changes)


def fit_drop_in(folder: Any, student: nn.Module, data: Any, term: Term | None = None, **changes: Any) -> Any:
    module = drop_in.Theirs()
    module.backbone = student
    callback = drop_in.distillation(terms={"t": term or Term(KDLoss(3.0))})
    return run(folder, module, data, callback, **changes)


def run(folder: Any, module: LightningModule, data: Any, *callbacks: Any, **changes: Any) -> Any:
    trainer = toys.trainer(folder, *callbacks, **{"max_epochs": 1} | changes)
    trainer.fit(module, data)
    return trainer


both_ways = pytest.mark.parametrize("fit", [fit_learner, fit_drop_in], ids=["learner", "drop-in"])

# ---- a last batch of one sample


@both_ways
def test_a_last_sample_alone_under_batch_norm_is_refused_in_the_first_batch(fit, tmp_path):
    steps = []
    network = student(nn.BatchNorm1d(8))
    network[0].register_full_backward_hook(lambda *_: steps.append(1))
    with pytest.raises(UsageError, match=r"last batch of an epoch has 1 sample, .*1 \(BatchNorm1d\).* drop_last=True"):
        fit(tmp_path, network, loader())
    assert not steps


@both_ways
@pytest.mark.parametrize(
    "data",
    [
        loader(drop_last=True),
        loader(samples=10),
        loader(samples=8),
        loader(batch_size=3),
        toys.Loader(list(loader(samples=8))),
    ],
    ids=["dropped", "two", "full", "three", "no loader"],
)
def test_other_last_batches_are_trained_on(fit, data, tmp_path):
    assert fit(tmp_path, student(nn.BatchNorm1d(8)), data).global_step == len(data)


@both_ways
def test_a_last_batch_that_is_not_reached_is_no_fault(fit, tmp_path):
    assert fit(tmp_path, student(nn.BatchNorm1d(8)), loader(), limit_train_batches=2).global_step == 2


@both_ways
def test_layers_that_can_take_one_sample_are_no_fault(fit, tmp_path):
    frozen = student(nn.BatchNorm1d(8))
    frozen[1].eval()
    assert fit(tmp_path, frozen, loader()).global_step == 3
    assert fit(tmp_path, student(nn.LayerNorm(8)), loader()).global_step == 3


def test_maps_have_statistics_of_one_sample_and_pooled_ones_have_none(tmp_path):
    def colour(side: int) -> Classifier:
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * side**2, 5))
        return Classifier(pool)

    data = DataLoader(dataset(SAMPLES, 3, 6, 5), batch_size=4)
    assert run(tmp_path, colour(2), data).global_step == 3
    with pytest.raises(UsageError, match=r"student\.1 \(BatchNorm2d\)"):
        run(tmp_path, colour(1), data)


class Normalised(nn.Module):
    """A loss of single samples, whose connector has a BatchNorm."""

    compares_samples = True

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        return (self.norm(student) - teacher[:, :8]).square().mean()


headless = pytest.mark.filterwarnings(
    "ignore:.* of the optimizer have no gradient"
)  # behind the layer that is compared


@headless
@both_ways
@pytest.mark.parametrize("loss", [RKDLoss(), Normalised()], ids=["relations", "connector"])
def test_a_loss_that_needs_several_samples_is_refused_in_the_first_batch(fit, loss, tmp_path):
    term = comparing(loss)
    with pytest.raises(UsageError, match="the last batch of an epoch has 1 sample") as caught:
        fit(tmp_path, student(), loader(), term)
    assert "term 't'" in str(caught.value) or "norm (BatchNorm1d)" in str(caught.value)
    assert fit(tmp_path, student(), loader(drop_last=True), term).global_step == 2


class Drawing(nn.Module):
    """A loss with random numbers and a state, which can be computed of one sample."""

    compares_samples = True

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        self.calls += 1
        return (student - teacher[:, :8] + torch.rand_like(student)).square().mean()


@headless
@both_ways
def test_trying_a_loss_draws_no_random_number_and_changes_no_state(fit, tmp_path):
    data, found = loader(), []
    for batches in (data, toys.Loader(list(data))):  # of a list the last size is not known
        torch.manual_seed(5)
        network, term = student(), comparing(Drawing())
        fit(tmp_path, network, batches, term)
        assert term.loss.calls == 3
        found.append(toys.weights(network))
    assert toys.same(*found)


def test_peers_are_looked_at_as_well(tmp_path):
    peers = MutualLearning(student(), [student(nn.BatchNorm1d(8))], {"kd": Term(KDLoss(3.0))})
    with pytest.raises(UsageError, match=r"peers\.0\.1 \(BatchNorm1d\)"):
        run(tmp_path, peers, loader())


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (loader(), 1),
        (loader(drop_last=True), 4),
        (loader(samples=8), 4),
        (DataLoader(dataset(), batch_sampler=BatchSampler(SequentialSampler(range(7)), 5, False)), 2),
        (DataLoader(dataset(), batch_size=None), None),
        ([1, 2], None),
    ],
)
def test_the_size_of_a_last_batch(data, size):
    assert last_size(data) == size


@pytest.mark.parametrize(("rows", "ranks", "drop_last"), [(9, 1, False), (10, 2, False), (9, 1, True), (8, 2, False)])
def test_the_size_of_a_resident_loaders_last_batch(rows, ranks, drop_last):
    images = LabeledImages(torch.zeros(rows, 3, 4, 4, dtype=torch.uint8), torch.arange(rows))
    shares = TrainLoader(images, torch.arange(rows), 4, seed=0, drop_last=drop_last, world_size=ranks)
    assert last_size(shares) == len(list(shares)[-1][0])


# ---- no batch at all


class Nothing(IterableDataset[Any]):
    def __iter__(self):
        return iter(())


@both_ways
@pytest.mark.filterwarnings("ignore:Total length of")
@pytest.mark.parametrize(
    "data",
    [toys.Loader([]), loader(samples=3, drop_last=True), DataLoader(Nothing())],
    ids=["list", "dropped", "iterable"],
)
def test_an_empty_loader_is_refused(fit, data, tmp_path):
    with pytest.raises(UsageError, match="the training loader is empty, so that nothing was trained"):
        fit(tmp_path, student(), data)


@both_ways
@pytest.mark.parametrize("setting", ["limit_train_batches", "max_epochs", "max_steps"])
def test_a_fit_that_is_to_train_nothing_is_warned_of(fit, setting, tmp_path):
    with pytest.warns(UserWarning, match=f"{setting}=0: nothing was trained"):
        fit(tmp_path, student(), loader(), **{setting: 0})


def test_a_finished_run_that_is_resumed_is_no_fault(tmp_path):
    learner = Classifier(student(), {"task": Term(TaskLoss(), teacher=None)})
    trainer = run(tmp_path, learner, loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = toys.trainer(tmp_path, max_epochs=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*nothing was trained")
        again.fit(learner, loader(), ckpt_path=tmp_path / "last.ckpt")


@both_ways
def test_the_check_leaves_the_trainer(fit, tmp_path):
    trainer = fit(tmp_path, student(), loader())
    assert not any(isinstance(callback, LoaderSizes) for callback in trainer.callbacks)
