from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.losses import DKDLoss, dkd_loss
from tests.losses import naive
from tests.losses.plain import Plain

LABELS = torch.tensor([3, 0, 2, 3, 1])


def logits(seed: int, classes: int = 4, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(5, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parts(s: list[float], t: list[float], label: int, temperature: float) -> tuple[float, float]:
    """TCKD and NCKD of one sample, equations 3 to 7 of the paper."""

    def kl(p: list[float], q: list[float]) -> float:
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    q, p = naive.softmax(s, temperature), naive.softmax(t, temperature)
    others = [c for c in range(len(s)) if c != label]
    rest_p, rest_q = sum(p[c] for c in others), sum(q[c] for c in others)
    of_label = kl([p[label], rest_p], [q[label], rest_q])
    return of_label, kl([p[c] / rest_p for c in others], [q[c] / rest_q for c in others])


@pytest.mark.parametrize("temperature", [0.7, 1.0, 4.0, 30.0])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 8.0), (0.0, 1.0), (2.0, 0.0)])
def test_value_is_that_of_naive_loops(temperature, alpha, beta):
    student, teacher = logits(1), logits(2)
    found = DKDLoss(temperature, alpha, beta)(student, teacher, LABELS)
    rows = zip(naive.pairs(student, teacher), LABELS.tolist(), strict=True)
    both = [parts(s, t, label, temperature) for (s, t), label in rows]
    expected = temperature**2 * sum(alpha * a + beta * b for a, b in both) / 5
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_gradient_is_that_of_the_published_formula_where_that_is_finite():
    student, teacher = logits(1).requires_grad_(), logits(2)
    hot = torch.nn.functional.one_hot(LABELS, 4).double()
    q, p = (student / 4).softmax(dim=1), (teacher / 4).softmax(dim=1)
    q, p = (torch.stack([(x * hot).sum(dim=1), (x * (1 - hot)).sum(dim=1)], dim=1) for x in (q, p))
    others = [(x / 4 - 1000 * hot).log_softmax(dim=1) for x in (student, teacher)]
    published = 16 / 5 * ((p * (p / q).log()).sum() + 8 * (others[1].exp() * (others[1] - others[0])).sum())
    (expected,) = torch.autograd.grad(published, student)
    loss = dkd_loss(student, teacher, LABELS)
    torch.testing.assert_close(loss, published, rtol=1e-9, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_with_beta_1_minus_the_teachers_probability_it_is_hintons_loss(temperature):
    student, teacher = logits(1)[:1], logits(2)[:1]
    doubt = 1 - naive.softmax(teacher[0].tolist(), temperature)[3]
    found = dkd_loss(student, teacher, LABELS[:1], temperature, alpha=1.0, beta=doubt)
    assert found.item() == pytest.approx(naive.kd(student, teacher, temperature), rel=1e-9)


def test_the_other_classes_part_does_not_depend_on_the_labels_probability():
    student, teacher = logits(1), logits(2)
    sure = 50.0 * torch.nn.functional.one_hot(LABELS, 4)
    first = dkd_loss(student, teacher, LABELS, alpha=0.0, beta=1.0)
    torch.testing.assert_close(dkd_loss(student + sure, teacher - sure, LABELS, alpha=0.0, beta=1.0), first)


def test_a_common_offset_costs_no_precision_at_a_low_temperature():
    student, teacher = ((side + 1e4).float() for side in (logits(1), logits(2)))
    exact = dkd_loss(student.double(), teacher.double(), LABELS, temperature=0.3).item()
    assert dkd_loss(student, teacher, LABELS, temperature=0.3).item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_a_certain_and_wrong_student_still_has_a_gradient(scale):
    student = (scale * torch.tensor([[1.0, -1.0, 0.0]])).requires_grad_()
    loss = dkd_loss(student, torch.tensor([[-1.0, 1.0, 0.0]]), torch.tensor([1]), 1.0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert gradient[0, 1] < -0.5


def test_with_two_classes_the_other_classes_part_is_0():
    student, teacher = logits(1, 2), logits(2, 2)
    labels = LABELS % 2
    assert dkd_loss(student, teacher, labels, alpha=0.0).item() == 0
    assert dkd_loss(student, teacher, labels).item() == pytest.approx(naive.kd(student, teacher, 4.0))


@pytest.mark.parametrize("name", ["alpha", "beta"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_invalid_coefficients_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} must be a finite number, at least 0"):
        DKDLoss(**{name: value})


def plain_dkd(m, s, t, y):
    s, t, y = s / 4, t / 4, y.unsqueeze(1)
    p, q = t.softmax(1).gather(1, y), s.softmax(1).gather(1, y)
    binary = F.kl_div(torch.cat([q, 1 - q], 1).log(), torch.cat([p, 1 - p], 1), reduction="batchmean")
    s, t = (F.log_softmax(x.scatter(1, y, -1000.0), 1) for x in (s, t))
    return 16 * (binary + 8 * F.kl_div(s, t, reduction="batchmean", log_target=True))


PLAIN = {
    "DKDLoss": Plain(plain_dkd),
}
