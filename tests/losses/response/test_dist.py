from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.losses import DISTLoss, dist_loss
from tests.losses import naive
from tests.losses.case import Case, other_implementation
from tests.losses.plain import Plain

# above, T^2 shows the rounding where the correlation is -1 or 1, and the true gradient leaves float16
CASES = {"DISTLoss": Case(hottest=100.0)}


def logits(seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distance(x: list[float], y: list[float]) -> float:
    """1 - Pearson correlation."""
    x_mean, y_mean = math.fsum(x) / len(x), math.fsum(y) / len(y)
    covariance = math.fsum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    x_square, y_square = math.fsum((a - x_mean) ** 2 for a in x), math.fsum((b - y_mean) ** 2 for b in y)
    return 1 - covariance / math.sqrt(x_square * y_square)


def naive_dist(student: Tensor, teacher: Tensor, temperature: float, beta: float, gamma: float) -> float:
    q, p = ([naive.softmax(row, temperature) for row in x.tolist()] for x in (student, teacher))
    of_classes = [distance(a, b) for a, b in zip(q, p, strict=True)]
    of_samples = [distance([*a], [*b]) for a, b in zip(zip(*q, strict=True), zip(*p, strict=True), strict=True)]
    inter, intra = sum(of_classes) / len(of_classes), sum(of_samples) / len(of_samples)
    return temperature**2 * (beta * inter + gamma * intra)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 1.0), (0.0, 2.0), (3.0, 0.0)])
def test_value_is_that_of_naive_loops(temperature, beta, gamma):
    student, teacher = logits(1), logits(2)
    found = DISTLoss(temperature, beta, gamma)(student, teacher)
    expected = naive_dist(student, teacher, temperature, beta, gamma)
    assert found.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_value_and_gradient_are_those_of_torchdistill(temperature):
    theirs = other_implementation("torchdistill.losses.mid_level").DISTLoss("", "", "", "", tau=temperature)
    student, teacher = logits(1).requires_grad_(), logits(2)
    expected, found = theirs({"": {"": student}}, {"": {"": teacher}}), dist_loss(student, teacher, temperature)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_perfectly_correlated_probabilities_have_loss_0():
    teacher = logits(1)
    p = (teacher / 4).softmax(dim=1)
    student = 4 * (0.5 * p + 0.5 / 4).log()  # half as far from 1 / C, in every row and column
    assert dist_loss(student, teacher).item() < 1e-12
    assert naive.kd(student, teacher, 4.0) > 0.1


@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_float32_keeps_its_digits_where_the_probabilities_are_nearly_equal(scale):
    student, teacher = logits(1, scale).float(), logits(2, scale).float()
    expected = dist_loss(student.double(), teacher.double(), 100.0).item()
    assert dist_loss(student, teacher, 100.0).item() == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-3


def test_float32_keeps_the_digits_of_a_rare_class_among_very_many():
    """Its probability is 1e-9, and those of the others 1e-3: the difference from the mean would lose its digits."""
    generator = torch.Generator().manual_seed(1)
    student, teacher = 0.1 * torch.randn(2, 6, 1000, generator=generator)
    student[:, 0] -= 14
    teacher[:, 0] -= 14
    gradients = []
    for dtype in (torch.float32, torch.float64):
        s = student.to(dtype).requires_grad_()
        (gradient,) = torch.autograd.grad(dist_loss(s, teacher.to(dtype), temperature=1.0, beta=0.0), s)
        gradients.append(gradient[:, 0].double())
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-9)


def test_a_constant_vector_counts_0_on_both_sides_and_half_on_one():
    flat, sharp = torch.zeros(4, 3), torch.eye(4, 3)
    student = flat.clone().requires_grad_()
    both = dist_loss(student, flat)
    assert both.item() == 0
    assert not torch.autograd.grad(both, student)[0].any()
    same = sharp[:1].expand(4, 3).clone()  # one row for all: classes differ, samples do not
    assert dist_loss(same, same).item() == 0
    one = dist_loss(student, same, beta=1.0, gamma=0.0)
    assert one.item() == pytest.approx(16 / 2, rel=1e-5)
    assert torch.autograd.grad(one, student)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_that_differ_by_rounding_alone_have_no_gradient(dtype):
    """As those of a student that has collapsed, whose products round otherwise from one sample to the next."""
    eps = torch.finfo(dtype).eps
    row = torch.tensor([[0.25, -0.5, 0.125, 0.75]], dtype=dtype)
    student = (row * (1 + eps * torch.eye(6, 4, dtype=dtype))).requires_grad_()
    assert not torch.equal(student[:1].expand_as(student), student)
    loss = dist_loss(student, logits(2).to(dtype), beta=0.0)
    assert loss.item() == pytest.approx(16 / 2)
    assert not torch.autograd.grad(loss, student)[0].any()


def test_a_single_sample_is_refused():
    with pytest.raises(ValueError, match="use batches of at least 2"):
        dist_loss(torch.zeros(1, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"gamma=-1\.0 must be a finite number, at least 0"):
        DISTLoss(gamma=-1.0)


def plain_dist(m, s, t, y):
    s, t = (s / 4).softmax(1), (t / 4).softmax(1)
    classes = F.cosine_similarity(s - s.mean(1, keepdim=True), t - t.mean(1, keepdim=True), dim=1)
    samples = F.cosine_similarity(s - s.mean(0), t - t.mean(0), dim=0)
    return 16 * (2 - classes.mean() - samples.mean())


PLAIN = {
    "DISTLoss": Plain(plain_dist),
}
