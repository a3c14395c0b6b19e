from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from kd_lightning import Classifier, OfflineDistiller, Term
from kd_lightning.losses import KDLoss, LogitMSELoss, TaskLoss
from tests import toys


def batches(count: int = 4) -> toys.Loader:
    generator = torch.Generator().manual_seed(5)
    draw = torch.rand(count, 16, 3, 28, 28, generator=generator)
    return toys.Loader([(x, torch.randint(0, 10, (16,), generator=generator)) for x in draw])


def plain(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 784, width), nn.ReLU(), nn.Linear(width, 10))


def test_a_fit_is_the_loop_that_one_would_write(tmp_path):
    """Weights and logged losses of a distillation against plain torch, step by step."""
    student, teacher = plain(8, seed=1), plain(16, seed=2)
    learner = OfflineDistiller(
        copy.deepcopy(student), copy.deepcopy(teacher), toys.terms(), lambda p: torch.optim.SGD(p, lr=0.1)
    )
    logged: list[dict[str, float]] = []
    learner.log_dict = lambda values, **_: logged.append({k: float(v) for k, v in values.items()})  # type: ignore
    toys.trainer(tmp_path, max_epochs=1).fit(learner, batches())

    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for step, (x, y) in enumerate(batches()):
        task = functional.cross_entropy(student(x), y)
        soft = (teacher(x).detach() / 3).softmax(1)
        kd = 9 * (soft * (soft.log() - (student(x) / 3).log_softmax(1))).sum() / len(x)
        assert logged[step] == pytest.approx(
            {"train/task": task.item(), "train/kd": kd.item(), "temperature/kd": 3.0}, rel=1e-5
        )
        optimizer.zero_grad()
        (0.5 * task + 0.5 * kd).backward()
        optimizer.step()
    for ours, theirs in zip(learner.student.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_evaluation_is_exact_when_the_last_batch_is_smaller(tmp_path):
    x, y = torch.rand(77, 3, 28, 28), torch.randint(0, 10, (77,))
    learner = Classifier(plain(8, seed=1))
    loader = toys.Loader([(x[:32], y[:32]), (x[32:64], y[32:64]), (x[64:], y[64:])])
    (measured,) = toys.trainer(tmp_path).test(learner, loader, verbose=False)
    logits = learner.student(x)
    assert measured["test/acc"] == pytest.approx((logits.argmax(1) == y).double().mean().item(), abs=1e-7)
    assert measured["test/nll"] == pytest.approx(functional.cross_entropy(logits.double(), y).item(), rel=1e-6)


def test_losses_are_logged_only_at_the_steps_that_are_due(tmp_path):
    learner = toys.offline()
    due: list[int] = []
    learner.log_dict = lambda values, **_: due.append(learner.global_step)  # type: ignore
    toys.trainer(tmp_path, max_epochs=2, log_every_n_steps=3, accumulate_grad_batches=2).fit(learner, batches(8))
    assert due == [2, 5]  # the third and the sixth of eight optimizer steps, two batches each


@pytest.mark.parametrize(
    ("batch", "labels"),
    [
        (torch.zeros(2, 3), set()),
        ([torch.zeros(2, 3)], set()),
        ((torch.zeros(2, 3), torch.zeros(2)), {"target"}),
        ((torch.zeros(2, 3), torch.zeros(2), torch.arange(2)), {"target", "index"}),
        ({"input": torch.zeros(2, 3), "label": torch.zeros(2)}, {"label", "target"}),
    ],
)
def test_split_batch_knows_the_batches_of_usual_loaders(batch, labels):
    split = toys.classifier().split_batch(batch)
    assert split.student.shape == (2, 3)
    assert split.teacher is split.student
    assert set(split.labels) == labels


def test_split_batch_keeps_named_inputs_by_name():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, ids, mask):
            return ids * mask * self.scale

    learner = Classifier(Named(), {"task": Term(TaskLoss(), teacher=None, target="sentiment")})
    split = learner.split_batch({"ids": torch.ones(2, 3), "mask": torch.ones(2, 3), "sentiment": torch.zeros(2).long()})
    assert set(split.student) == {"ids", "mask"}
    assert set(split.labels) == {"sentiment"}  # which forward does not take
    assert learner.compute_losses(
        {"ids": torch.zeros(2, 3), "mask": torch.ones(2, 3), "sentiment": torch.zeros(2).long()}
    )["task"].item() == pytest.approx(torch.tensor(3.0).log().item())


def test_a_batch_of_four_parts_is_not_guessed():
    with pytest.raises(ValueError, match="4 parts"):
        toys.classifier().split_batch([torch.zeros(2)] * 4)


@pytest.mark.parametrize("name", ["type", "keys", "pop", "train", "half", "a.b", ""])
def test_term_names_that_a_module_dict_cannot_hold_are_refused(name):
    with pytest.raises(ValueError, match="cannot be called"):
        Classifier(plain(4, seed=0), {name: Term(TaskLoss(), teacher=None)})


def test_no_terms_and_terms_without_a_teacher_to_compare_with_are_refused():
    with pytest.raises(ValueError, match="terms is empty"):
        Classifier(plain(4, seed=0), {})
    with pytest.raises(ValueError, match="a Classifier has none"):
        Classifier(plain(4, seed=0), {"kd": Term(KDLoss())})


def test_a_teacher_that_shares_parameters_with_the_student_is_refused():
    student = plain(4, seed=0)
    with pytest.raises(ValueError, match="share parameters"):
        OfflineDistiller(student, student, toys.terms())
    with pytest.raises(ValueError, match="share parameters"):
        OfflineDistiller(student, nn.Sequential(student, nn.ReLU()), toys.terms())  # type: ignore


def test_a_loss_that_is_not_finite_stops_the_run_with_its_name(tmp_path):
    x, y = torch.full((16, 3, 28, 28), float("nan")), torch.zeros(16, dtype=torch.long)
    with pytest.raises(ValueError, match=r"not finite.*kd=nan"):
        toys.trainer(tmp_path, max_epochs=1).fit(toys.offline(), toys.Loader([(x, y)]))


def test_hyperparameters_hold_plain_values_only():
    learner = OfflineDistiller(plain(4, seed=0), plain(8, seed=1), toys.terms(), lr_interval="step")
    assert dict(learner.hparams) == {"lr_scheduler": None, "lr_interval": "step", "metrics": None}


def test_the_scheduler_moves_at_the_interval_that_is_asked_for(tmp_path):
    for interval, expected in (("step", 0.1 * 0.5**8), ("epoch", 0.1 * 0.5**2)):
        learner = Classifier(
            plain(4, seed=0),
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
            lr_interval=interval,  # type: ignore
        )
        toys.trainer(tmp_path, max_epochs=2).fit(learner, batches())
        assert learner.optimizers().param_groups[0]["lr"] == pytest.approx(expected)  # type: ignore


def test_an_unlabelled_batch_trains_on_soft_targets_alone():
    learner = OfflineDistiller(plain(4, seed=0), plain(8, seed=1), {"kd": Term(LogitMSELoss())})
    x = torch.rand(2, 3, 28, 28)
    expected = functional.mse_loss(learner.student(x), learner.teacher(x))
    assert learner.compute_losses(x)["kd"].item() == pytest.approx(expected.item())


def test_the_teacher_gives_no_graph_and_the_students_graph_reaches_every_parameter():
    learner = toys.offline()
    losses = learner.compute_losses(batches().batches[0])
    learner.weighted_sum(losses).backward()
    assert learner.teacher_activations(learner.split_batch(batches().batches[0]))["logits"].grad_fn is None
    assert all(parameter.grad is not None for parameter in learner.student.parameters())
    assert all(parameter.grad is None for parameter in learner.teacher.parameters())
