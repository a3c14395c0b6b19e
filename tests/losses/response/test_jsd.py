from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.losses import JSDLoss, jsd_loss
from tests.losses import naive
from tests.losses.plain import Plain


def logits(seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_jsd(student: Tensor, teacher: Tensor, temperature: float, beta: float) -> float:
    total = 0.0
    for s, t in naive.pairs(student, teacher):
        for q, p in zip(naive.softmax(s, temperature), naive.softmax(t, temperature), strict=True):
            mixture = beta * p + (1 - beta) * q
            total += beta * p * math.log(p / mixture) + (1 - beta) * q * math.log(q / mixture)
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("beta", [0.001, 0.1, 0.5, 0.9])
def test_value_is_that_of_naive_loops(temperature, beta):
    student, teacher = logits(1), logits(2)
    found = JSDLoss(temperature, beta)(student, teacher)
    assert found.item() == pytest.approx(naive_jsd(student, teacher, temperature, beta), rel=1e-8)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_gradient_is_that_of_the_plain_formula(beta):
    student, teacher = logits(1).requires_grad_(), logits(2)
    q, p = (student / 2).softmax(dim=1), (teacher / 2).softmax(dim=1)
    m = beta * p + (1 - beta) * q
    plain = 4 / 5 * (beta * p * (p / m).log() + (1 - beta) * q * (q / m).log()).sum()
    (expected,) = torch.autograd.grad(plain, student)
    (found,) = torch.autograd.grad(jsd_loss(student, teacher, 2.0, beta), student)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 30.0])
@pytest.mark.parametrize(
    ("beta", "nats"),  # of p = (3/4, 1/4) for the teacher and q = (1/2, 1/2) for the student, by hand
    [
        (0.0, 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)),  # KL(p || q) = 0.1308
        (0.5, 1 / 2 * (3 / 4 * math.log(6 / 5) + 1 / 4 * math.log(2 / 3) + 1 / 2 * math.log(16 / 15))),  # 0.0338
        (1.0, 1 / 2 * math.log(2 / 3) + 1 / 2 * math.log(2)),  # KL(q || p) = 0.1438
    ],
)
def test_two_classes_have_the_values_computed_by_hand(temperature, beta, nats):
    teacher = torch.tensor([[math.log(3) * temperature, 0.0]], dtype=torch.float64)
    found = jsd_loss(torch.zeros_like(teacher), teacher, temperature, beta)
    assert found.item() == pytest.approx(temperature**2 * nats, rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_ends_are_the_forward_and_the_reverse_divergence(temperature):
    student, teacher = logits(1), logits(2)
    forward, reverse = naive.kd(student, teacher, temperature), naive.kd(teacher, student, temperature)
    assert jsd_loss(student, teacher, temperature, 0.0).item() == pytest.approx(forward, rel=1e-9)
    assert jsd_loss(student, teacher, temperature, 1.0).item() == pytest.approx(reverse, rel=1e-9)


def test_the_ends_are_the_limits_of_the_loss_over_beta_times_one_minus_beta():
    student, teacher = logits(1), logits(2)
    for end, near in ((0.0, 1e-7), (1.0, 1 - 1e-7)):
        limit = jsd_loss(student, teacher, 1.0, near) / (near * (1 - near))
        assert limit.item() == pytest.approx(jsd_loss(student, teacher, 1.0, end).item(), rel=1e-4)


def test_near_its_minimum_it_is_a_quarter_of_hintons_loss():
    teacher = logits(2)
    student = teacher + 1e-4 * logits(1)
    assert jsd_loss(student, teacher, 4.0).item() == pytest.approx(naive.kd(student, teacher, 4.0) / 4, rel=1e-3)


def test_for_beta_half_it_is_symmetric_and_bounded_by_log_2_unlike_the_ends():
    student, teacher = logits(1), logits(2)
    torch.testing.assert_close(jsd_loss(student, teacher), jsd_loss(teacher, student))
    opposite = 1e4 * torch.tensor([[1.0, -1.0]]), 1e4 * torch.tensor([[-1.0, 1.0]])
    assert jsd_loss(*opposite).item() == pytest.approx(math.log(2), rel=1e-6)
    for beta in (0.0, 1.0):
        student = opposite[0].clone().requires_grad_()
        loss = jsd_loss(student, opposite[1], 1.0, beta)
        assert loss.item() == pytest.approx(2e4, rel=1e-3)
        assert torch.autograd.grad(loss, student)[0].isfinite().all()


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_an_invalid_share_is_refused(beta):
    with pytest.raises(ValueError, match=r"beta=.* must lie in \[0, 1\]"):
        JSDLoss(beta=beta)


def plain_jsd(m, s, t, y):
    s, t = F.log_softmax(s, 1), F.log_softmax(t, 1)
    mixture = torch.logaddexp(s, t) - math.log(2)
    return sum(F.kl_div(mixture, x, reduction="batchmean", log_target=True) for x in (s, t)) / 2


PLAIN = {
    "JSDLoss": Plain(plain_jsd),
}
