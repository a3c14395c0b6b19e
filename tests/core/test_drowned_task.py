"""Terms that drown the labels are warned of once a run, by their gradients in the first step."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from kd_lightning import OfflineDistiller, Term
from kd_lightning.core.drowned_task import LIMIT, warn_of_drowned_task
from kd_lightning.losses import BernoulliKDLoss, BinaryTaskLoss, KDLoss, LogitMSELoss, TaskLoss
from tests import toys
from tests.callbacks.drop_in import Theirs, batches, distillation, network, teacher


def warned(run) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [text for text in (str(each.message) for each in caught) if text.startswith("the gradient of")]


def numbers(text: str) -> tuple[float, float, float]:
    """The norm of the terms, the ratio and the norm of the labels in a warning."""
    found = re.search(r"norm (\S+)\) is (\S+) times that of the labels \((\S+)\) in", text)
    assert found is not None
    return float(found[1]), float(found[2]), float(found[3])


def norm(loss: torch.Tensor, student: nn.Module) -> float:
    gradients = torch.autograd.grad(loss, list(student.parameters()), retain_graph=True)
    return torch.cat([gradient.flatten() for gradient in gradients]).norm().item()


def test_a_drop_in_is_warned_with_the_norms_of_the_first_step(tmp_path):
    def run() -> None:
        drop_in = distillation(hint=False, terms={"kd": Term(KDLoss(3.0), weight=300.0)})
        toys.trainer(tmp_path, drop_in, max_epochs=2).fit(Theirs(), toys.Loader(batches()))

    (text,) = warned(run)
    student, (x, y) = network(), batches()[0]
    labels = norm(functional.cross_entropy(student(x), y), student)
    term = norm(300.0 * KDLoss(3.0)(student(x), teacher()(x)), student)
    assert numbers(text) == pytest.approx((term, term / labels, labels), rel=0.02)
    assert "term 'kd'" in text
    lowered = float(re.search(r"to kd (\S+) for 3 times", text)[1])
    assert lowered / 300 * term / labels == pytest.approx(3, rel=0.06)


def distiller(weight: float, task: float = 1.0) -> OfflineDistiller:
    terms = {"task": Term(TaskLoss(), weight=task, teacher=None), "kd": Term(KDLoss(3.0), weight=weight)}
    return OfflineDistiller(network(), teacher(), terms)


@pytest.mark.parametrize(("weight", "task", "count"), [(300.0, 1.0, 1), (0.5, 1.0, 0), (0.5, 0.01, 0), (0.0, 1.0, 0)])
def test_a_scheme_is_warned_of_large_weights_and_not_of_a_small_one_of_the_labels(weight, task, count, tmp_path):
    def run() -> None:
        toys.trainer(tmp_path, max_epochs=2).fit(distiller(weight, task), toys.Loader(batches()))

    assert len(warned(run)) == count


def test_labels_that_hold_together_are_compared_and_features_are_not(tmp_path):
    rows = [(torch.randn(6, 12), torch.randint(2, (6, 5)).float()) for _ in range(3)]

    def fit(weight: float) -> None:
        terms = {
            "task": Term(BinaryTaskLoss(), teacher=None),
            "kd": Term(BernoulliKDLoss(2.0), weight=weight),
            "hidden": Term(LogitMSELoss(), weight=1e4, student="0", teacher="0"),
        }
        learner = OfflineDistiller(network(), network(seed=2), terms)
        toys.trainer(tmp_path, max_epochs=1).fit(learner, toys.Loader(rows))

    (text,) = warned(lambda: fit(100.0))
    assert "term 'kd' (norm " in text
    assert not warned(lambda: fit(0.01))


def test_the_comparison_changes_no_weight_and_is_not_repeated_at_a_resume(tmp_path, monkeypatch):
    def fit(epochs: int, path=None):
        learner = distiller(300.0)
        trainer = toys.trainer(tmp_path, max_epochs=epochs)
        trainer.fit(learner, toys.Loader(batches()), ckpt_path=path)
        return trainer, learner

    trainer, learner = fit(2)
    monkeypatch.setattr("kd_lightning.core.terms.warn_of_drowned_task", lambda *_: None)
    assert toys.same(toys.weights(fit(2)[1]), toys.weights(learner))
    monkeypatch.undo()
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert not warned(lambda: fit(3, tmp_path / "last.ckpt"))


def test_a_graph_of_one_backward_pass_is_passed_over():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("donated buffers")

    weight = nn.Parameter(torch.ones(3))
    assert not warned(lambda: warn_of_drowned_task(Once.apply(weight).sum(), {"kd": 99 * weight.sum()}, {"kd": 99.0}))
    assert not warned(lambda: warn_of_drowned_task(weight.sum(), {"kd": 0.9 * LIMIT * weight.sum()}, {"kd": LIMIT}))
    assert warned(lambda: warn_of_drowned_task(weight.sum(), {"kd": 1.1 * LIMIT * weight.sum()}, {"kd": LIMIT}))
