"""Teachers that are made of their student: each run is written out again in plain torch."""

from __future__ import annotations

from functools import partial
from hashlib import blake2b
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning import OfflineDistiller, Term
from kd_lightning.callbacks import (
    BornAgain,
    EMATeacher,
    PiecewiseConstant,
    SnapshotTeacher,
    TeacherCache,
    TeacherFreezing,
    TermWeightSchedule,
)
from kd_lightning.callbacks.distillation import Distillation
from kd_lightning.cli.configs import SHIPPED
from kd_lightning.core.distributed import all_gather_with_grad
from kd_lightning.core.hashing import weights_hash
from kd_lightning.losses import KDLoss, SoftCrossEntropyLoss, TaskLoss
from kd_lightning.networks import freeze, is_frozen, load_student, load_teacher
from tests import toys

# the runs that are resumed here write no checkpoints of their own
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")


class ConnectedLoss(nn.Module):
    """A loss that learns a map."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.connector = nn.Linear(10, 10)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        return functional.mse_loss(self.connector(student), teacher)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def halving(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


def twins(**terms: Term) -> OfflineDistiller:
    student, teacher = toys.network(seed=1), toys.network(seed=2)
    return OfflineDistiller(student, teacher, terms or toys.terms(), sgd, halving, lr_interval="step")


def momentum() -> toys.Case:
    return toys.Case(twins(), [EMATeacher(0.7)])


def snapshot() -> toys.Case:
    return toys.Case(twins(), [SnapshotTeacher(3, "step")])  # cycles that begin within epochs and between them


def born_again() -> toys.Case:
    return toys.Case(twins(**toys.terms(), hint=Term(ConnectedLoss(), weight=0.1)), [BornAgain(1, seed=5)])


def ps_kd() -> toys.Case:
    terms = {"task": Term(TaskLoss(), teacher=None), "past": Term(SoftCrossEntropyLoss(temperature=1.0))}
    share = {0: 0.0, 1: 0.8 * 2 / 3, 2: 0.8}
    weights = {"task": {epoch: 1 - a for epoch, a in share.items()}, "past": share}
    schedules = [TermWeightSchedule(term, PiecewiseConstant(values), unit="epoch") for term, values in weights.items()]
    return toys.Case(twins(**terms), [SnapshotTeacher(1), *schedules])


CASES = {"momentum": momentum, "snapshot": snapshot, "born_again": born_again, "ps_kd": ps_kd}
every_case = pytest.mark.parametrize("name", CASES)


class Kept(Callback):
    """Each batch, and what was made of it: student and teacher before it, student after it, the terms' losses."""

    def __init__(self) -> None:
        self.batches: list[tuple[Tensor, Tensor]] = []
        self.before: list[dict[str, Tensor]] = []
        self.after: list[dict[str, Tensor]] = []
        self.losses: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append((batch[0].clone(), batch[1].clone()))

    def on_before_backward(self, trainer, pl_module, loss):
        self.before.append(toys.weights(pl_module))
        assert is_frozen(pl_module.teacher)
        assert not any(parameter.requires_grad for parameter in pl_module.teacher.parameters())
        assert not any(module.training for module in pl_module.teacher.modules())

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.after.append(toys.weights(pl_module))
        self.losses.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def run(case: toys.Case, folder, *callbacks, ckpt_path=None, **changes) -> tuple[OfflineDistiller, Kept]:
    kept = Kept()
    trainer = toys.trainer(folder, *callbacks, *case.callbacks, kept, **changes)
    trainer.fit(case.learner, toys.data(), ckpt_path=ckpt_path)
    return case.learner, kept


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


def kd(logits: Tensor, soft: Tensor, temperature: float = 3.0) -> Tensor:
    p, q = (values.div(temperature).softmax(dim=1) for values in (soft, logits))
    return temperature**2 * (p * (p.log() - q.log())).sum(dim=1).mean()


def half_each(_, logits: Tensor, soft: Tensor, y: Tensor) -> Tensor:
    return 0.5 * functional.cross_entropy(logits, y) + 0.5 * kd(logits, soft)


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


# ---- resume: `tests/test_every_scheme.py` resumes each case from each checkpoint


class Stops(Callback):
    """Ctrl-C, before the other callbacks hear of it."""

    def __init__(self, hook: str, batch: int) -> None:
        self.batch = batch
        setattr(self, hook, self._stop)

    def _stop(self, trainer, *_):
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            raise KeyboardInterrupt


@every_case
@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_train_batch_end"])
@pytest.mark.parametrize("batches", [(1, 2), (3, 4)])
def test_resume_after_two_interruptions_is_bit_exact(name, hook, batches, tmp_path):
    truth, _ = run(CASES[name](), tmp_path)
    saved = None
    for batch in batches:
        save = ModelCheckpoint(tmp_path, save_on_exception=True, save_top_k=0, save_last=True)
        with pytest.raises(SystemExit):  # which is what Lightning makes of it
            run(CASES[name](), tmp_path, Stops(hook, batch), save, ckpt_path=saved)
        saved = max(tmp_path.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    again, _ = run(CASES[name](), tmp_path, ckpt_path=saved)
    assert toys.same(toys.weights(again), toys.weights(truth))


@every_case
def test_resume_with_accumulation_and_bf16_is_bit_exact(name, tmp_path):
    changes = {"accumulate_grad_batches": 3, "precision": "bf16-mixed", "gradient_clip_val": 0.1}
    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    truth, _ = run(CASES[name](), tmp_path, save, **changes)
    saved = sorted(tmp_path.glob("*.ckpt"))
    assert len(saved) == 6
    for checkpoint in saved:
        again, _ = run(CASES[name](), tmp_path, ckpt_path=checkpoint, **changes)
        assert toys.same(toys.weights(again), toys.weights(truth)), checkpoint.name


def test_a_resumed_run_goes_on_with_its_seed(tmp_path):
    truth, _ = run(born_again(), tmp_path, ModelCheckpoint(tmp_path, "first", every_n_train_steps=3, save_top_k=1))
    other = born_again()._replace(callbacks=[BornAgain(1, seed=6)])
    again, _ = run(other, tmp_path, ckpt_path=tmp_path / "first.ckpt")
    assert toys.same(toys.weights(again), toys.weights(truth))


class Theirs(LightningModule):
    """Someone's own module, which knows nothing of a teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = toys.network(seed=1)

    def training_step(self, batch, batch_idx):
        return 0.5 * functional.cross_entropy(self.backbone(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return sgd(self.parameters())


class TheirsWithTeacher(Theirs):
    """Their teacher is a submodule like any other."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = toys.network(seed=2)

    def training_step(self, batch, batch_idx):
        return half_each(0, self.backbone(batch[0]), self.teacher(batch[0]), batch[1])


def test_a_teacher_in_anyones_module_does_not_learn(tmp_path):
    module = TheirsWithTeacher()
    toys.trainer(tmp_path, SnapshotTeacher(9, student="backbone")).fit(module, toys.data())
    assert toys.same(module.teacher.state_dict(), toys.network(seed=1).state_dict())
    assert not toys.same(module.teacher.state_dict(), module.backbone.state_dict())


def drop_in(kind, folder, *callbacks, ckpt_path=None, **changes) -> tuple[Theirs, nn.Module]:
    # what the teacher begins with does not matter at a resume
    module, teacher = Theirs(), toys.network(seed=2 if ckpt_path is None else 7)
    distillation = Distillation("backbone", teacher, {"kd": Term(KDLoss(temperature=3.0), weight=0.5)})
    moving = kind(student="backbone")
    toys.trainer(folder, moving, distillation, *callbacks, **changes).fit(module, toys.data(), ckpt_path=ckpt_path)
    return module, teacher


KINDS = [
    EMATeacher,
    lambda **names: SnapshotTeacher(3, "step", **names),
    lambda **names: BornAgain(1, seed=5, **names),
]


@pytest.mark.parametrize("kind", KINDS, ids=["momentum", "snapshot", "born_again"])
def test_the_teacher_of_a_drop_in_moves_and_resumes(kind, tmp_path):
    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    module, teacher = drop_in(kind, tmp_path, save)
    assert not toys.same(teacher.state_dict(), toys.network(seed=2).state_dict())
    assert not any("teacher" in key for key in module.state_dict())
    for checkpoint in sorted(tmp_path.glob("*.ckpt")):
        again, moved = drop_in(kind, tmp_path, ckpt_path=checkpoint)
        assert toys.same(toys.weights(again), toys.weights(module)), checkpoint.name
        assert toys.same(moved.state_dict(), teacher.state_dict()), checkpoint.name


class SameTeacher(Callback):
    """On both ranks, in every step, its BatchNorm's buffers too."""

    def on_before_backward(self, trainer, pl_module, loss):
        (distillation,) = (callback for callback in trainer.callbacks if isinstance(callback, Distillation))
        own = torch.tensor(list(bytes.fromhex(weights_hash(distillation.teacher))))
        assert (all_gather_with_grad(own).view(2, -1) == own).all()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS, ids=["momentum", "snapshot", "born_again"])
def test_two_processes_have_one_teacher_where_it_is_no_part_of_the_module(kind, tmp_path):
    drop_in(kind, tmp_path, SameTeacher(), strategy="ddp_fork", devices=2)


# ---- files


@every_case
def test_student_and_teacher_are_both_in_a_checkpoint_and_can_be_told_apart(name, tmp_path):
    learner, _ = run(CASES[name](), tmp_path, ModelCheckpoint(tmp_path, "last"))
    file = tmp_path / "last.ckpt"
    assert {key.split(".")[0] for key in torch.load(file, weights_only=True)["state_dict"]} >= {"student", "teacher"}
    assert toys.same(load_student(file, toys.network()).state_dict(), learner.student.state_dict())
    teacher = load_teacher(toys.network(), file, prefix="teacher")
    assert toys.same(teacher.state_dict(), learner.teacher.state_dict())
    assert not toys.same(teacher.state_dict(), learner.student.state_dict())

    fresh = twins()  # no callback has set it up, and its teacher is one that is left out
    weights = torch.load(file, weights_only=True)["state_dict"]
    fresh.load_state_dict({key: value for key, value in weights.items() if "hint" not in key}, strict=True)
    assert toys.same(fresh.teacher.state_dict(), learner.teacher.state_dict())


def test_the_ensemble_of_all_generations(tmp_path):
    """The mean of what the generations say, from the files that the docstring of `BornAgain` speaks of."""
    each = ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True)
    _, kept = run(born_again(), tmp_path, each)
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) == 3
    images = torch.rand(4, 3, 28, 28)
    mean = torch.stack([load_student(file, toys.network())(images) for file in files]).mean(dim=0)

    total = torch.zeros(4, 10)
    for n in (3, 7, 11):  # the last batch of each generation
        network = toys.network().eval()
        network.load_state_dict({k[8:]: v for k, v in kept.after[n].items() if k.startswith("student.")})
        total += network(images).detach()
    torch.testing.assert_close(mean.detach(), total / 3)


# ---- what is refused


def shared() -> OfflineDistiller:
    """One module that both hold, without a parameter that `OfflineDistiller` could find."""
    network = nn.Sequential(nn.Flatten())
    return OfflineDistiller(network, network, toys.terms())


@pytest.mark.parametrize("kind", [EMATeacher, lambda: SnapshotTeacher(1), lambda: BornAgain(1)])
@pytest.mark.parametrize(
    ("learner", "complaint"),
    [
        (
            toys.offline,
            r"'teacher' cannot be made from 'student': Sequential has 2.weight \(16, 147\) and Sequential has",
        ),
        (toys.classifier, "Classifier has no network 'teacher' for .*; the nearest names are"),
        (shared, "share parameters, and there is nothing to learn from: build the teacher as a separate network"),
    ],
)
def test_networks_that_are_no_pair_are_refused(kind, learner, complaint, tmp_path):
    with pytest.raises(ValueError, match=complaint):
        toys.trainer(tmp_path, kind()).fit(learner(), toys.data())


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (TeacherFreezing(), "SnapshotTeacher changes 'teacher' during the fit, and TeacherFreezing needs it"),
        (TeacherCache(), "SnapshotTeacher changes 'teacher' during the fit, and TeacherCache needs it"),
        (EMATeacher(), "changes 'teacher' during the fit, and (EMATeacher|SnapshotTeacher) needs it"),
    ],
)
def test_callbacks_that_rely_on_the_teacher_are_refused(other, complaint, tmp_path):
    for callbacks in ([other, SnapshotTeacher(1)], [SnapshotTeacher(1), other]):
        with pytest.raises(ValueError, match=complaint):
            toys.trainer(tmp_path, *callbacks).fit(twins(), toys.data(augmentation=None))


def test_freezing_another_network_is_not_refused(tmp_path):
    case = snapshot()
    learner = case.learner
    before, first = toys.weights(learner), toys.weights(learner.teacher)
    run(case._replace(callbacks=[*case.callbacks, TeacherFreezing("student.2")]), tmp_path, max_epochs=1)
    changed = {
        name for name, value in toys.weights(learner).items() if name in before and not value.equal(before[name])
    }
    assert "student.6.weight" in changed
    assert not [name for name in changed if name.startswith("student.2.")]
    assert not toys.same(toys.weights(learner.teacher), first)


def test_an_average_in_half_precision_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'teacher' is in torch.bfloat16, in which an average does not change"):
        run(momentum(), tmp_path, precision="bf16-true")


def test_a_generation_cut_short_is_refused_and_a_short_run_is_not(tmp_path):
    with pytest.raises(ValueError, match="max_epochs=3 ends within a generation: make it a multiple of epochs_per"):
        run(toys.Case(twins(), [BornAgain(2)]), tmp_path)
    run(toys.Case(twins(), [BornAgain(5)]), tmp_path, max_epochs=1)


class Scaled(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3 * 784, 10))
        self.scale = nn.Parameter(torch.ones(()))


def test_what_cannot_be_born_again_is_refused(tmp_path):
    learner = OfflineDistiller(Scaled(), Scaled(), toys.terms())
    with pytest.raises(ValueError, match=r"'student' cannot be reinitialized: give its class Scaled,.* reset_param"):
        toys.trainer(tmp_path, BornAgain(1)).fit(learner, toys.data())


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: EMATeacher(1.0), r"momentum=1.0 must lie in \[0, 1\)"),
        (lambda: EMATeacher(-0.1), r"momentum=-0.1 must lie"),
        (lambda: SnapshotTeacher(0), "interval=0 must be at least 1"),
        (lambda: SnapshotTeacher(1, "batch"), "unit='batch' is neither 'step' nor 'epoch'"),
        (lambda: BornAgain(0), "epochs_per_generation=0 must be at least 1"),
    ],
)
def test_times_that_make_no_sense_are_refused(build, complaint):
    with pytest.raises(ValueError, match=complaint):
        build()


# ---- the shipped configurations


def shipped(name: str) -> tuple[dict, dict[str, dict]]:
    config = yaml.safe_load((Path(SHIPPED) / f"self/{name}.yaml").read_text())
    callbacks = [(item["class_path"], item["init_args"]) for item in config["trainer"]["callbacks"]]
    return config, {args.get("term", name): args.get("schedule", {}).get("init_args", args) for name, args in callbacks}


def test_ps_kd_has_the_papers_weights():
    config, callbacks = shipped("ps_kd")
    epochs = config["trainer"]["max_epochs"]
    shares = [0.0, *(0.8 * t / epochs for t in range(2, epochs + 1))]
    assert callbacks["past"]["values"] == pytest.approx(dict(enumerate(shares)))
    assert callbacks["task"]["values"] == pytest.approx({epoch: 1 - share for epoch, share in enumerate(shares)})


def test_the_cycles_of_snapshot_are_whole_epochs_of_everything():
    config, callbacks = shipped("snapshot")
    cycle = callbacks["SnapshotTeacher"]["interval"]
    assert config["model"]["init_args"]["lr_scheduler"]["init_args"]["T_0"] == cycle
    assert cycle * 3 == 55000 // config["data"]["init_args"]["batch_size"] * config["trainer"]["max_epochs"]
    softness = config["model"]["init_args"]["terms"]["kd"]["loss"]["init_args"]["teacher_temperature"]
    assert callbacks["task"]["values"] == {0: 1.0, cycle: 1 + 1 / softness}
    assert callbacks["kd"]["values"] == {0: 0.0, cycle: 1.0}


def test_the_generations_of_born_again_change_with_their_terms():
    config, callbacks = shipped("born_again")
    epochs = callbacks["BornAgain"]["epochs_per_generation"]
    assert config["trainer"]["max_epochs"] == 3 * epochs
    assert callbacks["task"]["values"] == {0: 1.0, epochs: 0.0}
    assert callbacks["kd"]["values"] == {0: 0.0, epochs: 1.0}
