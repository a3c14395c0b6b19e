from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning import Classifier, Term
from kd_lightning.losses import TfKDLoss, task_loss, tf_kd_loss
from tests import toys
from tests.losses import naive
from tests.losses.plain import Plain

LABELS = torch.tensor([3, 0, 2, 3, 1])


def logits(scale: float = 3.0) -> Tensor:
    return scale * torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def virtual(correct: float) -> Tensor:
    """The virtual teacher's probabilities, equation 8 of the paper."""
    rows = [[correct if c == label else (1 - correct) / 3 for c in range(4)] for label in LABELS.tolist()]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 20.0, 40.0])
@pytest.mark.parametrize("correct", [0.1, 0.9, 0.99])
def test_value_and_gradient_are_those_of_naive_loops(temperature, correct):
    student, teacher = logits().requires_grad_(), virtual(correct).log()
    loss = TfKDLoss(temperature, correct)(student, None, LABELS)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(naive.kd(student.detach(), teacher, temperature), rel=1e-9)
    expected = torch.tensor(naive.kd_gradient(student.detach(), teacher, temperature), dtype=torch.float64)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_the_temperature_softens_probabilities_by_a_power_on_both_sides():
    powers = virtual(0.99) ** (1 / 20)
    soft = powers / powers.sum(dim=1, keepdim=True)
    student = 20 * soft.log()
    assert tf_kd_loss(student, LABELS).item() == pytest.approx(0, abs=1e-12)
    assert soft.max() < 0.4


def test_at_temperature_1_its_gradient_is_that_of_label_smoothing():
    student = logits().requires_grad_()
    smoothing = (1 - 0.99) * 4 / 3  # (1 - a) on three other classes is a share e of e / 4 each
    (expected,) = torch.autograd.grad(task_loss(student, LABELS, smoothing), student)
    (found,) = torch.autograd.grad(tf_kd_loss(student, LABELS, 1.0), student)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_certain_and_wrong_student_has_finite_gradients(dtype):
    student = (1e4 * torch.eye(5, 4)).to(dtype).requires_grad_()
    loss = tf_kd_loss(student, LABELS, 1.0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("correct", [0.0, 1.0, -0.1, math.nan])
def test_an_invalid_probability_of_the_label_is_refused(correct):
    with pytest.raises(ValueError, match=r"correct=.* must lie between 0 and 1"):
        TfKDLoss(correct=correct)


def test_it_trains_a_student_without_a_teacher():
    learner = Classifier(toys.network(), {"virtual": Term(TfKDLoss(), teacher=None)})
    losses = learner.compute_losses((torch.rand(4, 3, 28, 28), torch.arange(4)))
    losses["virtual"].backward()
    assert all(parameter.grad is not None for parameter in learner.student.parameters())
    with pytest.raises(ValueError, match="TfKDLoss needs the label 'target'"):
        learner.compute_losses(torch.rand(4, 3, 28, 28))


def plain_tf_kd(m, s, t, y):
    others = s.shape[1] - 1
    odds = (0.99 / 0.01 * others) ** (1 / 20)
    other = 1 / (others + odds)  # probability
    entropy = -others * other * math.log(other) - odds * other * math.log(odds * other)
    return (F.cross_entropy(s / 20, y, label_smoothing=(others + 1) * other) - entropy) * 400


PLAIN = {
    "TfKDLoss": Plain(plain_tf_kd),
}
