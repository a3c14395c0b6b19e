"""A frozen teacher is held outside the module: walkers do not reach it, and device and dtype follow the module."""

from __future__ import annotations

import copy
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, ModelPruning, StochasticWeightAveraging
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim.swa_utils import update_bn

from kd_lightning import Classifier, OfflineDistiller, Term, UsageError
from kd_lightning.callbacks import BornAgain, ChannelsLast, EMATeacher, SnapshotTeacher, TeacherFreezing, TorchCompile
from kd_lightning.core.hashing import weights_hash
from kd_lightning.losses import FeatureMSELoss, KDLoss
from kd_lightning.schemes.frozen_teacher import FrozenTeacher
from tests import found, ranks, toys

HELD = [name for name, build in found.cases().items() if isinstance(build().learner, FrozenTeacher)]


class Attack(Callback):
    """Changes every module and parameter of the LightningModule, as third-party code may do."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        for module in pl_module.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if "running" in name:
                    buffer.zero_()  # as SWA and update_bn reset statistics
        for parameter in pl_module.parameters():
            parameter.data.mul_(0.999)
        pl_module.apply(lambda module: module.train())


@pytest.mark.parametrize("name", HELD)
def test_code_that_walks_a_scheme_does_not_reach_its_teacher(name, tmp_path):
    case = found.cases()[name]()
    learner = case.learner
    if not learner.teacher_is_held:
        pytest.fail("a case of a frozen teacher holds it from the start")
    before = weights_hash(learner.teacher)
    run = toys.trainer(tmp_path, *case.callbacks, Attack(), max_epochs=1)
    run.fit(learner, (case.data or toys.data)())
    if not learner.teacher_is_held:  # a callback of the case changes it
        return
    assert weights_hash(learner.teacher) == before
    assert not any(layer.training for layer in learner.teacher.modules())
    guests = {id(tensor) for tensor in (*learner.teacher.parameters(), *learner.teacher.buffers())}
    assert not guests & {id(tensor) for tensor in (*learner.parameters(), *learner.buffers())}
    assert not guests & {id(p) for o in run.optimizers for group in o.param_groups for p in group["params"]}
    assert not [key for key in learner.state_dict() if key.startswith("teacher.")]


def distiller(seed: int = 2) -> OfflineDistiller:
    return OfflineDistiller(toys.network(seed=1), toys.network(16, seed=seed), toys.terms())


WALKERS = {
    "stochastic weight averaging": lambda: StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1),
    "exponential averaging": lambda: EMAWeightAveraging(decay=0.5),
    "pruning": lambda: ModelPruning("l1_unstructured", amount=0.5, use_global_unstructured=True),
}


@pytest.mark.filterwarnings("ignore:Swapping scheduler", "ignore:The .* was applied", "ignore:.*pruning")
@pytest.mark.parametrize("walker", WALKERS.values(), ids=WALKERS)
def test_lightning_callbacks_do_not_change_the_teacher(walker, tmp_path):
    learner = distiller()
    before = weights_hash(learner.teacher)
    toys.trainer(tmp_path, walker(), max_epochs=3).fit(learner, toys.data())
    assert weights_hash(learner.teacher) == before


def test_loops_over_the_module_do_not_change_the_teacher():
    learner = distiller()
    before = weights_hash(learner.teacher)
    update_bn([torch.rand(4, 3, 28, 28)], learner)
    for module in learner.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    learner.unfreeze()
    learner.requires_grad_(True).train()
    assert weights_hash(learner.teacher) == before
    assert not any(parameter.requires_grad for parameter in learner.teacher.parameters())


class WritesToTheTeacher(Callback):
    def on_train_batch_end(self, trainer, pl_module, *_):
        pl_module.teacher[2].weight.data.add_(1.0)


def test_a_change_of_the_teacher_raises_at_the_end_of_the_fit(tmp_path):
    with pytest.raises(UsageError, match="the network 'teacher' is frozen and its weights have changed"):
        toys.trainer(tmp_path, WritesToTheTeacher(), max_epochs=1).fit(distiller(), toys.data())


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
def test_a_resume_with_another_teacher_raises(tmp_path):
    toys.trainer(tmp_path, ModelCheckpoint(tmp_path, "last"), max_epochs=1).fit(distiller(), toys.data())
    checkpoint = tmp_path / "last.ckpt"
    toys.trainer(tmp_path, max_epochs=2).fit(distiller(), toys.data(), ckpt_path=checkpoint)
    with pytest.raises(UsageError, match=r"started with another network 'teacher' \(sha256 .* than it is resumed"):
        toys.trainer(tmp_path, max_epochs=2).fit(distiller(seed=3), toys.data(), ckpt_path=checkpoint)
    again = OfflineDistiller.load_from_checkpoint(
        checkpoint, student=toys.network(), teacher=toys.network(16, seed=3), terms=toys.terms(), weights_only=True
    )
    toys.trainer(tmp_path, max_epochs=1).fit(again, toys.data())  # a new run may have another teacher


# ---- what submodules get from the tree


def test_the_teacher_follows_the_device_and_dtype_of_the_module():
    learner = distiller()
    learner.to(torch.float64)
    assert {p.dtype for p in learner.teacher.parameters()} == {torch.float64}
    learner.half()
    assert {p.dtype for p in learner.teacher.parameters()} == {torch.float16}
    learner.to("meta")
    assert all(p.is_meta for p in learner.teacher.parameters())


def test_a_teacher_that_is_a_lightning_module_has_the_right_device():
    learner = OfflineDistiller(toys.network(seed=1), Classifier(toys.network(16, seed=2)), toys.terms())
    learner.to("meta")
    assert learner.teacher.device == torch.device("meta")


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_precisions_reach_the_teacher(precision, tmp_path):
    learner = distiller()
    toys.trainer(tmp_path, precision=precision, max_epochs=1).fit(learner, toys.data())
    expected = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "bf16-mixed": torch.float32}[precision]
    assert {p.dtype for p in learner.teacher.parameters()} == {expected}


def test_memory_formats_reach_the_teacher(tmp_path):
    def convolutions(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))

    learner = OfflineDistiller(convolutions(1), convolutions(2), toys.terms())
    toys.trainer(tmp_path, ChannelsLast(), max_epochs=1).fit(learner, toys.data())
    assert learner.teacher[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda learner: pickle.loads(pickle.dumps(learner))])
def test_a_copy_of_the_module_has_its_own_teacher(duplicate):
    learner = OfflineDistiller(toys.network(seed=1), toys.network(16, seed=2), toys.terms())
    twin = duplicate(learner)
    assert weights_hash(twin.teacher) == weights_hash(learner.teacher)
    assert twin.teacher is not learner.teacher
    assert twin.held_teacher.network is twin.teacher
    twin.to(torch.float64)
    assert learner.teacher[2].weight.dtype == torch.float32


def test_another_teacher_can_be_assigned():
    learner = distiller()
    learner.teacher = toys.network(32, seed=4)
    assert "teacher" not in learner._modules
    assert not learner.teacher[2].weight.requires_grad
    with pytest.raises(UsageError, match="share parameters"):
        learner.teacher = learner.student


def test_callbacks_find_the_teacher_by_its_name(tmp_path):
    learner = distiller()
    callbacks = [TeacherFreezing(), TeacherFreezing("teacher.2"), TorchCompile(["teacher"], backend="eager")]
    toys.trainer(tmp_path, *callbacks, max_epochs=1).fit(learner, toys.data())
    with pytest.raises(UsageError, match="no network 'techer' to freeze; the nearest names are teacher"):
        toys.trainer(tmp_path, TeacherFreezing("techer"), max_epochs=1).fit(learner, toys.data())


def test_the_summary_has_a_line_about_the_teacher(tmp_path, capfd, caplog):
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    toys.trainer(tmp_path, max_epochs=1, enable_model_summary=True).fit(distiller(), toys.data())
    assert "network 'teacher': Sequential, 2,570 parameters (10 KiB), frozen, outside the module" in caplog.text


# ---- a teacher that changes is a submodule

CHANGES = {
    "momentum": lambda: [EMATeacher(momentum=0.5)],
    "snapshot": lambda: [SnapshotTeacher(interval=1)],
    "born again": lambda: [BornAgain(epochs_per_generation=1, seed=0)],
    "learns first": lambda: [TeacherFreezing(freeze_at=1)],
}


def alike() -> OfflineDistiller:
    return OfflineDistiller(toys.network(seed=1), toys.network(seed=2), toys.terms())


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
@pytest.mark.parametrize("callbacks", CHANGES.values(), ids=CHANGES)
def test_a_changing_teacher_is_saved_and_loaded_in_every_stage(callbacks, tmp_path):
    learner = alike()
    run = toys.trainer(tmp_path, *callbacks(), ModelCheckpoint(tmp_path, "last"), max_epochs=2)
    run.fit(learner, toys.data())
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert {key for key in state if key.startswith("teacher.")} == {
        f"teacher.{key}" for key in learner.teacher.state_dict()
    }

    for with_callback in (True, False):  # the module that loads it may have no such callback
        fresh = alike()
        tester = toys.trainer(tmp_path, *(callbacks() if with_callback else ()))
        tester.test(fresh, toys.data(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
        assert weights_hash(fresh.teacher) == weights_hash(learner.teacher)
        assert weights_hash(fresh.student) == weights_hash(learner.student)

    fresh = alike()
    del state["teacher.2.weight"]
    with pytest.raises(RuntimeError, match=r"it has teacher\.2\.weight, which they lack"):
        fresh.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"they have teacher\.9, which it lacks"):
        alike().load_state_dict(learner.state_dict() | {"teacher.9": torch.zeros(1)})


# ---- two processes


class Seen(Callback):
    """The teacher's hash where training starts, and the student's weights where it ends."""

    def on_train_start(self, trainer, pl_module):
        self.teacher = weights_hash(pl_module.teacher)

    def on_train_end(self, trainer, pl_module):
        self.student = toys.weights(pl_module)


def plain(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 784, width), nn.ReLU(), nn.Linear(width, 10))


class Sharded(OfflineDistiller):
    def configure_model(self):
        mesh = init_device_mesh("cpu", (2,))
        for layer in (*self.teacher, self.teacher):
            if isinstance(layer, nn.Linear) or layer is self.teacher:
                fully_shard(layer, mesh=mesh)


def fit(out: Path, learner: OfflineDistiller) -> Seen:
    seen = Seen()
    run = toys.trainer(out, seen, TeacherFreezing(), strategy="ddp", devices=2, max_epochs=1)
    run.fit(learner, toys.data(augmentation=None))
    return seen


def one_rank(out: Path) -> None:
    rank = int(os.environ["LOCAL_RANK"])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank)
    terms = {"kd": Term(KDLoss()), "hint": Term(FeatureMSELoss(), student="2", teacher="2")}
    other = fit(out, distiller(seed=rank + 5))  # uses the teacher of rank 0, although this rank has loaded another
    whole = fit(out, OfflineDistiller(plain(8, 1), plain(8, 2), dict(terms)))
    sharded = fit(out, Sharded(plain(8, 1), plain(8, 2), dict(terms)))
    found = {"other": other.teacher, "whole": whole.student, "sharded": sharded.student, "hash": sharded.teacher}
    torch.save(found, out / f"{rank}.pt")


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    ranks.run_two("tests.schemes.test_frozen_teacher", out)
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(2)]


@ranks.two_processes
def test_all_ranks_have_the_teacher_of_rank_0(of_ranks):
    assert {found["other"] for found in of_ranks} == {weights_hash(toys.network(16, seed=5))}


@ranks.two_processes
def test_a_sharded_teacher_equals_a_whole_one_and_is_checked_for_changes(of_ranks):
    first, second = of_ranks
    assert first["hash"] == second["hash"]
    for name, value in first["whole"].items():
        torch.testing.assert_close(first["sharded"][name], value, rtol=1e-5, atol=1e-6)
        assert torch.equal(first["sharded"][name], second["sharded"][name])


if __name__ == "__main__":
    one_rank(Path(sys.argv[1]))
