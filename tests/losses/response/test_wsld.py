from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.losses import WSLDLoss, wsld_loss
from tests.losses import naive
from tests.losses.case import Case
from tests.losses.plain import Plain

LABELS = torch.tensor([3, 0, 2, 3, 1])
CASES = {"WSLDLoss": Case(constants=True)}


def logits(seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(student: Tensor, teacher: Tensor) -> list[float]:
    errors = [
        (-naive.log_softmax(s)[label], -naive.log_softmax(t)[label])
        for (s, t), label in zip(naive.pairs(student, teacher), LABELS.tolist(), strict=True)
    ]
    return [1 - math.exp(-behind / (ahead + 1e-7)) for behind, ahead in errors]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 30.0])
def test_value_and_gradient_are_those_of_naive_loops_with_weights_that_are_given(temperature):
    student, teacher = logits(1).requires_grad_(), logits(2)
    given = weights(student.detach(), teacher)
    loss = WSLDLoss(temperature)(student, teacher, LABELS)
    (gradient,) = torch.autograd.grad(loss, student)
    rows = [(student.detach()[n : n + 1], teacher[n : n + 1]) for n in range(5)]
    expected = sum(w * naive.kd(s, t, temperature) for w, (s, t) in zip(given, rows, strict=True)) / 5
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    wanted = [
        [w / 5 * x for x in naive.kd_gradient(s, t, temperature)[0]] for w, (s, t) in zip(given, rows, strict=True)
    ]
    torch.testing.assert_close(gradient, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_gradient_is_that_of_the_published_cross_entropy():
    student, teacher = logits(1).requires_grad_(), logits(2)
    errors = [torch.nn.functional.cross_entropy(x, LABELS, reduction="none").detach() for x in (student, teacher)]
    soft = -((teacher / 2).softmax(dim=1) * (student / 2).log_softmax(dim=1)).sum(dim=1)
    published = 4 * ((1 - (-errors[0] / (errors[1] + 1e-7)).exp()) * soft).mean()
    (expected,) = torch.autograd.grad(published, student)
    (found,) = torch.autograd.grad(wsld_loss(student, teacher, LABELS), student)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def weight(student: list[float], teacher: list[float]) -> float:
    """The weight of a sample with label 0: the loss divided by Hinton's."""
    pair = torch.tensor([student]), torch.tensor([teacher])
    return wsld_loss(*pair, torch.tensor([0])).item() / naive.kd(*pair, 2.0)


def test_weights_are_small_where_the_student_is_better_and_1_where_the_teacher_is():
    assert weight([9.0, 0.0], [0.0, 9.0]) < 1e-4
    assert weight([0.0, 9.0], [9.0, 0.0]) == pytest.approx(1)
    assert weight([3.0, 0.0, -1.0], [3.0, -1.0, 0.0]) == pytest.approx(1 - math.exp(-1), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("behind", [0.0, 1e-3, 1.0, 1e4])
def test_a_teacher_without_error_gives_a_finite_loss(dtype, behind):
    student = torch.tensor([[1e4 - 2 * behind, 0.0, -1e4]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype)
    loss = wsld_loss(student, teacher, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert loss.item() == pytest.approx(2e4 if behind == 1e4 else 0, rel=1e-3)  # (1e4 / T) T^2, and w = 1


def plain_wsld(m, s, t, y):
    weights = 1 - (-F.cross_entropy(s.detach(), y, reduction="none") / F.cross_entropy(t, y, reduction="none")).exp()
    s, t = F.log_softmax(s / 2, 1), F.log_softmax(t / 2, 1)
    return (weights * F.kl_div(s, t, reduction="none", log_target=True).sum(1)).mean() * 4


PLAIN = {
    "WSLDLoss": Plain(plain_wsld),
}
