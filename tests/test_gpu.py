"""What is to be seen on a GPU alone: `make test-gpu` runs this, and the tests of every scheme and callback there."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback

from kd_lightning import Classifier, OfflineDistiller, UsageError
from kd_lightning.callbacks import ChannelsLast, FastLoop, TeacherCache
from kd_lightning.data import MNIST, Digits, KNNGraphDataModule, ResidentDataModule, SameClassPairs
from kd_lightning.networks import ConvNet, GraphNetwork, freeze, load_student
from tests import found, toys

pytestmark = pytest.mark.skipif(toys.ACCELERATOR != "gpu", reason="no GPU was asked for: KD_TEST_ACCELERATOR=gpu")


class Batches(Callback):
    """What was trained on."""

    def __init__(self) -> None:
        self.seen: list[tuple[torch.Tensor, ...]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(tuple(batch))


def fit(folder, learner, *callbacks, data=None, **changes):
    trainer = toys.trainer(folder, *callbacks, **{"max_epochs": 2, "log_every_n_steps": 4} | changes)
    trainer.fit(learner, data or toys.data(augmentation=None, train_size=192))
    return trainer


def seen_on(accelerator, folder, data):
    batches = Batches()
    fit(folder, Classifier(ConvNet(4)), batches, data=data, accelerator=accelerator)
    return batches.seen


@pytest.mark.parametrize("kind", [ResidentDataModule, SameClassPairs])
def test_batches_are_made_on_the_gpu_and_are_those_of_a_cpu(kind, tmp_path):
    arguments = {"num_channels": 3, "batch_size": 16, "train_size": 192, "val_size": 0}
    there = seen_on("gpu", tmp_path, kind(MNIST(), **arguments))
    here = seen_on("cpu", tmp_path, kind(MNIST(), **arguments))
    assert len(there) == len(here) == 24
    for first, second in zip(there, here, strict=True):
        assert all(part.is_cuda for part in first)
        assert torch.equal(first[1].cpu(), second[1])
        assert torch.equal(first[2].cpu(), second[2])
        torch.testing.assert_close(first[0].cpu(), second[0], rtol=1e-6, atol=0)  # a GPU divides by multiplying


def test_the_gpu_is_given_back(tmp_path):
    data = toys.data(augmentation=None, train_size=192)
    trainer = fit(tmp_path, Classifier(ConvNet(4)), data=data)
    assert data.train_set.images.device.type == "cpu"
    assert not data._copies
    trainer.test(Classifier(ConvNet(4)), data, verbose=False)
    assert not data._copies


class Graphs(Callback):
    """The features and edges that were trained on."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen += [batch["graph"]["x"], batch["graph"]["edge_index"]]


def test_a_graph_is_moved_to_the_gpu_once_and_given_back(tmp_path):
    graphs = Graphs()
    data = KNNGraphDataModule(Digits(), nodes="all", num_labeled=64, batch_size=16, val_size=32)
    fit(tmp_path, Classifier(GraphNetwork(64, [6]), input_key="graph"), graphs, data=data)
    assert len(graphs.seen) == 16
    assert all(part.is_cuda for part in graphs.seen)
    assert len({part.data_ptr() for part in graphs.seen}) == 2
    assert not data._copies


def distiller() -> OfflineDistiller:
    torch.manual_seed(0)
    return OfflineDistiller(ConvNet(4), freeze(ConvNet(8)), toys.terms())


def test_a_gpu_learns_what_a_cpu_does(tmp_path):
    """In float64, where another order of sums is all that differs."""
    learned = {}
    for accelerator in ("cpu", "gpu"):
        learner = distiller()
        fit(tmp_path, learner, TeacherCache(), FastLoop(), accelerator=accelerator, precision="64-true")
        learned[accelerator] = {name: value.cpu() for name, value in learner.student.state_dict().items()}
    for name, value in learned["cpu"].items():
        torch.testing.assert_close(learned["gpu"][name], value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_half_precision_learns(precision, tmp_path):
    learner = distiller()
    before = toys.weights(learner)
    trainer = fit(tmp_path, learner, FastLoop(), ChannelsLast(), TeacherCache(), precision=precision)
    assert trainer.global_step == 24
    after = toys.weights(learner)
    assert all(value.isfinite().all() for value in after.values())
    assert not toys.same(before, {name: value.cpu() for name, value in after.items()})


class Hides(OfflineDistiller):
    """Has an augmentation of its own in one step."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, *labels = batch
        return (x * 0.5 if self.trainer.training and self.global_step == 14 else x, *labels)


@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`:UserWarning")
def test_a_row_that_changed_is_found_at_the_next_log(tmp_path):
    learner = Hides(ConvNet(4), freeze(ConvNet(8)), toys.terms())
    with pytest.raises(UsageError, match="differs from the cached teacher"):
        fit(tmp_path, learner, TeacherCache())
    assert learner.global_step in range(15, 20)


# ---- steps that are replayed


class Fused(Callback):
    """Lets any scheme's Adam count on the GPU."""

    def on_train_start(self, trainer, pl_module):
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                if "fused" in group:
                    group.update(fused=True, foreach=False)


@pytest.fixture
def replays(monkeypatch):
    """How often a graph was replayed."""
    done = []
    own = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (done.append(1), own(graph))[1])
    return done


def learned(folder, case, recorded, **changes):
    loop = FastLoop(cuda_graph=recorded)
    data = (case.data or toys.data)(augmentation=None, train_size=192)
    fit(folder, case.learner, *case.callbacks, Fused(), loop, data=data, log_every_n_steps=8, **changes)
    return toys.weights(case.learner), loop.unrecorded


CASES = found.cases()
CHANGES = {
    "alone": {},
    "clipped": {"gradient_clip_val": 0.05},
    "bf16": {"precision": "bf16-mixed"},
}


@pytest.mark.parametrize("name", CASES)
def test_a_replayed_step_is_bit_for_bit_the_step(name, tmp_path, replays):
    plain, _ = learned(tmp_path, CASES[name](), recorded=False)
    assert not replays
    other, reason = learned(tmp_path, CASES[name](), recorded=True)
    assert toys.same(plain, other)
    assert bool(replays) != bool(reason)
    if name in toys.LEARNERS:
        assert len(replays) >= 10


@pytest.mark.parametrize("changes", CHANGES.values(), ids=list(CHANGES))
@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
def test_replayed_steps_of_a_distiller(changes, cached, tmp_path, replays):
    plain, _ = learned(tmp_path, toys.Case(toys.offline(), [TeacherCache()] * cached), recorded=False, **changes)
    other, reason = learned(tmp_path, toys.Case(toys.offline(), [TeacherCache()] * cached), recorded=True, **changes)
    assert reason is None
    assert len(replays) >= 10
    assert toys.same(plain, other)


class Slower(Callback):
    """Another learning rate in each epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        trainer.optimizers[0].param_groups[0]["lr"] = 0.01 / (trainer.current_epoch + 1)


def test_another_learning_rate_is_recorded_again(tmp_path, replays):
    plain, _ = learned(tmp_path, toys.Case(toys.offline(), [Slower()]), recorded=False)
    other, _ = learned(tmp_path, toys.Case(toys.offline(), [Slower()]), recorded=True)
    assert replays
    assert toys.same(plain, other)


class Waits(OfflineDistiller):
    """Looks at a value in each step, which no graph can."""

    def compute_losses(self, batch):
        losses = super().compute_losses(batch)
        return losses if losses["kd"].item() > -1 else {}


def test_steps_that_cannot_be_recorded_run_eagerly_and_the_reason_is_reported(tmp_path, replays):
    def case():
        plain = toys.offline()
        return toys.Case(Waits(plain.student, plain.teacher, toys.terms()))

    plain, _ = learned(tmp_path, case(), recorded=False)
    other, reason = learned(tmp_path, case(), recorded=True)
    assert not replays
    assert "captur" in reason
    assert toys.same(plain, other)


def test_a_checkpoint_of_a_gpu_is_loaded_where_there_is_none(tmp_path):
    learner = distiller()
    trainer = fit(tmp_path, learner)
    trainer.save_checkpoint(tmp_path / "gpu.ckpt")
    loaded = load_student(tmp_path / "gpu.ckpt", ConvNet(4))
    assert all(not value.is_cuda for value in loaded.state_dict().values())
