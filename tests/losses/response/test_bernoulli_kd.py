import math

import pytest
import torch
from torch.nn import functional as F

from kd_lightning.losses import BernoulliKDLoss, bernoulli_kd_loss, kd_loss
from tests.losses import naive
from tests.losses.case import Case
from tests.losses.plain import Plain

CASES = {
    "BernoulliKDLoss": Case(
        wrong=[((4, 10), (4, 5)), ((4, 1), (4, 10)), ((4, 1), (4,)), ((0, 3), (0, 3)), ((2, 3, 4), (2, 3, 4))]
    ),
    "BernoulliKDLoss of one logit": Case(BernoulliKDLoss, student=(6, 1), teacher=(6, 1)),
}


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


@pytest.mark.parametrize("shape", [(7, 10), (5, 1), (1, 3)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_value_and_gradient_are_those_of_naive_loops(shape: tuple[int, int], temperature: float):
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    loss = BernoulliKDLoss(temperature)(student, teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    total, slopes = 0.0, []
    for s, t in naive.pairs(student, teacher):
        slopes.append([])
        for s_c, t_c in zip(s, t, strict=True):
            q, p = sigmoid(s_c / temperature), sigmoid(t_c / temperature)
            total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
            slopes[-1].append(temperature * (q - p) / student.numel())
    assert loss.item() == pytest.approx(temperature**2 * total / student.numel(), rel=1e-12)
    torch.testing.assert_close(gradient, torch.tensor(slopes, dtype=torch.float64), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("temperature", [0.5, 4.0, 20.0])
def test_one_logit_is_two_classes_of_which_one_has_the_logit_0(temperature: float):
    generator = torch.Generator().manual_seed(1)
    student, teacher = 5 * torch.randn(2, 9, 1, generator=generator, dtype=torch.float64)
    classes = (torch.cat([torch.zeros_like(side), side], dim=1) for side in (student, teacher))
    torch.testing.assert_close(
        bernoulli_kd_loss(student, teacher, temperature), kd_loss(*classes, temperature), rtol=1e-10, atol=1e-12
    )
    assert torch.equal(bernoulli_kd_loss(student[:, 0], teacher[:, 0]), bernoulli_kd_loss(student, teacher))


@pytest.mark.parametrize("certain", [math.inf, -math.inf])
def test_an_infinite_teacher_logit_is_a_certain_label(certain: float):
    student = torch.tensor([[0.5, -2.0]], requires_grad=True)
    loss = bernoulli_kd_loss(student, torch.tensor([[certain, 0.0]]), temperature=1.0)
    expected = F.binary_cross_entropy_with_logits(student[0, :1], torch.tensor([float(certain > 0)]))
    expected = (expected + bernoulli_kd_loss(student[:, 1:], torch.zeros(1, 1), 1.0)) / 2
    torch.testing.assert_close(loss, expected)
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_nearly_equal_logits_keep_their_digits_at_a_high_temperature():
    teacher = torch.tensor([[0.3, -0.7]])
    student = teacher + torch.tensor([[1e-2, -2e-2]])
    exact = bernoulli_kd_loss(student.double(), teacher.double(), 100.0).item()
    assert bernoulli_kd_loss(student, teacher, 100.0).item() == pytest.approx(exact, rel=1e-2)


def plain(m, s, t, y):
    p = torch.sigmoid(t / 4)
    return 16 * (F.binary_cross_entropy_with_logits(s / 4, p) - F.binary_cross_entropy_with_logits(t / 4, p))


PLAIN = {
    "BernoulliKDLoss": Plain(plain),
}
