"""Evolving teachers, written out in plain torch and under the trainer's options."""

from __future__ import annotations

from functools import partial
from hashlib import blake2b

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning import OfflineDistiller, Term
from kd_lightning.callbacks import (
    BornAgain,
    EMATeacher,
    SnapshotTeacher,
)
from kd_lightning.losses import KDLoss, TaskLoss
from kd_lightning.networks import freeze
from tests import toys
from tests.callbacks.teachers.twins import (
    ConnectedLoss,
    born_again,
    half_each,
    halving,
    momentum,
    ps_kd,
    run,
    sgd,
    snapshot,
    twins,
)

# the runs that are resumed here write no checkpoints of their own
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")

# ---- the same in plain torch


def seed(*numbers: int) -> None:
    told = " ".join(map(str, numbers)).encode()
    torch.manual_seed(int.from_bytes(blake2b(told, digest_size=8).digest()))


def steps(batches, student, teacher, loss, optimizer=None):
    """Plain training; it stops before each step, for what is to happen there."""
    optimizer = optimizer or sgd(student.parameters())
    scheduler = halving(optimizer)
    for n, (x, y) in batches:
        yield n
        seed(0, n, 0)  # dropout, as `ExactResume` seeds it for this batch of rank 0
        logits = student.train()(x)
        with torch.no_grad():
            soft = teacher.eval()(x)
        optimizer.zero_grad()
        loss(n, logits, soft, y).backward()
        optimizer.step()
        scheduler.step()


def close(learner: LightningModule, student: nn.Module, teacher: nn.Module) -> None:
    for name, network in (("student", student), ("teacher", teacher)):
        found, expected = learner.get_submodule(name).state_dict(), network.state_dict()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5, msg=f"{name}.{key}")


def averaged(teacher: nn.Module, student: nn.Module, share: float) -> None:
    ours, theirs = teacher.state_dict(), student.state_dict()
    for name, value in theirs.items():
        ours[name].copy_(share * ours[name] + (1 - share) * value if value.is_floating_point() else value)


@pytest.mark.parametrize("warm_up", [True, False])
def test_momentum_written_out(warm_up, tmp_path):
    learner, kept = run(toys.Case(twins(), [EMATeacher(0.7, warm_up)]), tmp_path)
    share = {1: 1 / 2, 2: 2 / 3} if warm_up else {}
    student, teacher = toys.network(seed=1), toys.network(seed=1)  # it begins as the student
    for n in steps(enumerate(kept.batches), student, teacher, half_each):
        if n:
            averaged(teacher, student, share.get(n, 0.7))
    averaged(teacher, student, 0.7)
    close(learner, student, teacher)
    assert kept.losses[0]["train/kd"] > 0.01  # the student alone has dropout


def test_snapshot_written_out(tmp_path):
    learner, kept = run(snapshot(), tmp_path)
    student, teacher = toys.network(seed=1), toys.network(seed=2)
    for n in steps(enumerate(kept.batches), student, teacher, half_each):
        if n in (0, 3, 6, 9):
            teacher.load_state_dict(student.state_dict())
    close(learner, student, teacher)


def test_born_again_written_out(tmp_path):
    learner, kept = run(born_again(), tmp_path)
    student, teacher, hint = toys.network(seed=1), toys.network(seed=2), ConnectedLoss()

    def loss(n: int, logits: Tensor, soft: Tensor, y: Tensor) -> Tensor:
        return half_each(n, logits, soft, y) + 0.1 * hint(logits, soft)

    for generation in range(3):
        if generation:
            teacher.load_state_dict(student.state_dict())
            seed(5, generation)
            for layer in (student[2], student[3], student[6], hint.connector):
                layer.reset_parameters()
        batches = [(n, kept.batches[n]) for n in range(4 * generation, 4 * generation + 4)]
        optimizer = sgd([*student.parameters(), *hint.parameters()])
        for _ in steps(batches, student, teacher, loss, optimizer):
            pass
    close(learner, student, teacher)
    torch.testing.assert_close(learner.terms["hint"].loss.state_dict(), hint.state_dict(), rtol=1e-4, atol=1e-5)

    # two objects, and something to learn from
    assert {p.data_ptr() for p in learner.teacher.parameters()}.isdisjoint(
        p.data_ptr() for p in learner.student.parameters()
    )
    assert min(losses["train/kd"] for losses in kept.losses) > 0.1


def test_ps_kd_is_the_mixed_target_written_out(tmp_path):
    learner, kept = run(ps_kd(), tmp_path)
    student, teacher = toys.network(seed=1), toys.network(seed=2)

    def loss(n: int, logits: Tensor, soft: Tensor, y: Tensor) -> Tensor:
        epoch = n // 4 + 1
        share = 0.8 * epoch / 3 if epoch > 1 else 0.0  # in the first epoch the label is the past
        target = (1 - share) * functional.one_hot(y, 10) + share * soft.softmax(dim=1)
        return -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()

    for n in steps(enumerate(kept.batches), student, teacher, loss):
        if n % 4 == 0:
            teacher.load_state_dict(student.state_dict())
    close(learner, student, teacher)


# ---- whatever else the trainer does


@pytest.mark.parametrize(
    "changes",
    [{"accumulate_grad_batches": 3}, {"gradient_clip_val": 0.01}, {"precision": "bf16-mixed"}, {"max_steps": 7}],
    ids=str,
)
def test_the_average_is_of_the_weights_after_each_optimizer_step(changes, tmp_path):
    """Three epochs of four batches. Of three batches a step, one is left at each epoch's end: a step of its own."""
    learner, kept = run(momentum(), tmp_path, **changes)
    stepped = (2, 3, 6, 7, 10, 11) if "accumulate_grad_batches" in changes else range(len(kept.batches))
    shares = [1 / 2, 2 / 3, *[0.7] * 10]
    teacher = {name: value.double() for name, value in toys.network(seed=1).state_dict().items()}
    for share, n in zip(shares, stepped, strict=False):
        for name, value in teacher.items():
            student = kept.after[n][f"student.{name}"].double()
            teacher[name] = student if "num_batches" in name else share * value + (1 - share) * student
    for name, value in learner.teacher.state_dict().items():
        assert value.dtype in (torch.float32, torch.int64)
        torch.testing.assert_close(value.double(), teacher[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("callback", "starts", "changes"),
    [
        (SnapshotTeacher(3, "step"), [0, 3, 6, 9], {}),
        (SnapshotTeacher(3, "step"), [0, 3, 6, 9], {"precision": "bf16-mixed", "gradient_clip_val": 0.01}),
        (SnapshotTeacher(2, "step"), [0, 4, 8], {"accumulate_grad_batches": 3}),
        (SnapshotTeacher(2, "epoch"), [0, 8], {"accumulate_grad_batches": 3}),
        (SnapshotTeacher(1, "epoch"), [0, 4, 8], {"max_steps": 11, "max_epochs": -1}),
    ],
)
def test_the_teacher_is_the_student_as_it_was_before_the_first_batch_of_the_cycle(callback, starts, changes, tmp_path):
    _, kept = run(toys.Case(twins(), [callback]), tmp_path, **changes)
    begun = toys.network(seed=1).state_dict()
    for n, seen in enumerate(kept.before):
        if n in starts and n:
            begun = {key: kept.after[n - 1][f"student.{key}"] for key in begun}
        assert toys.same({key: seen[f"teacher.{key}"] for key in begun}, begun), n


def test_a_generation_does_not_depend_on_those_before_but_for_its_teacher(tmp_path):
    """With Adam, whose state is more than a momentum, and a schedule over steps that warms up from almost nothing."""

    def one_cycle(optimizer):
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=4)

    def learner() -> OfflineDistiller:
        terms = {"task": Term(TaskLoss(), teacher=None)}
        networks = toys.network(seed=1), toys.network(seed=2)
        return OfflineDistiller(*networks, terms, torch.optim.Adam, one_cycle, lr_interval="step")

    rates: list[float] = []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])
            assert all(state["step"] == (trainer.global_step % 4) for state in optimizer.state.values())

    run(toys.Case(learner(), [BornAgain(1)]), tmp_path, Rates())
    assert len(rates) == 12
    assert rates[:4] == rates[4:8] == rates[8:]
    assert rates[0] < rates[1]


def test_an_optimizer_that_begins_with_something_begins_with_it_again(tmp_path):
    sums: list[float] = []

    class Sums(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            sums.append(max(state["sum"].max().item() for state in optimizer.state.values()))

    adagrad = partial(torch.optim.Adagrad, initial_accumulator_value=0.25)
    networks = toys.network(seed=1), toys.network(seed=2)
    learner = OfflineDistiller(*networks, toys.terms(), adagrad)
    run(toys.Case(learner, [BornAgain(1)]), tmp_path, Sums())
    assert [n for n, value in enumerate(sums) if value == 0.25] == [0, 4, 8]


@pytest.mark.parametrize("seeds", [(5, 5, True), (5, 6, False)])
def test_the_seed_alone_says_how_a_generation_begins(seeds, tmp_path):
    begun = []
    for number in seeds[:2]:
        torch.rand(number)  # whatever was drawn before
        _, kept = run(toys.Case(twins(), [BornAgain(1, seed=number)]), tmp_path)
        begun.append(
            [{k: v for k, v in kept.before[n].items() if "student" in k and "running" not in k} for n in (4, 8)]
        )
    assert toys.same(begun[0][0], begun[1][0]) == seeds[2]
    assert not toys.same(*begun[0])


class Attention(nn.Module):
    """Layers that begin otherwise than torch has them: the outermost has the last word."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)
        self.frozen = freeze(nn.Linear(4, 4))
        self.head = nn.Linear(4, 10)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.head.weight)


def test_what_begins_again_does_so_as_its_layers_say():
    from kd_lightning.callbacks.teachers.born_again import reinitialize

    learner = OfflineDistiller(Attention(), Attention(), {"kd": Term(KDLoss())})
    before = toys.weights(learner) | learner.teacher.state_dict(prefix="teacher.")
    for parameter in learner.student.attention.parameters():
        nn.init.constant_(parameter, 9.0)
    nn.init.constant_(learner.student.head.weight, 9.0)
    state = torch.get_rng_state()
    reinitialize(learner, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    student = learner.student
    assert not student.head.weight.any()
    assert 0 < student.attention.in_proj_weight.abs().max() < 2
    assert torch.equal(student.frozen.weight, before["student.frozen.weight"])
    assert toys.same(learner.teacher.state_dict(prefix="teacher."), {k: before[k] for k in before if "teacher" in k})
