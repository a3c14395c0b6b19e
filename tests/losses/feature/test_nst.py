import math

import pytest
import torch
from torch.nn import functional as F

from kd_lightning.losses import NSTLoss, nst_loss
from tests.losses import naive
from tests.losses.case import Case
from tests.losses.plain import STUDENT, STUDENTS, TEACHER, TEACHERS, Plain

CASES = {
    "NSTLoss": Case(
        student=(6, 3, 4, 4),
        teacher=(6, 3, 4, 4),
        wrong=[((6, 3, 4, 4), (5, 3, 4, 4)), ((6, 3), (6, 3)), ((0, 3, 4, 4), (0, 3, 4, 4))],
    ),
    "NSTLoss of two layers": Case(NSTLoss, student=[(6, 3, 4, 4), (6, 6, 2, 2)], teacher=[(6, 5, 2, 2), (6, 2, 3, 2)]),
}


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def channels(sample: list[list[list[float]]]) -> list[list[float]]:
    flat = [[value for row in channel for value in row] for channel in sample]
    lengths = [math.sqrt(sum(value**2 for value in vector)) for vector in flat]
    return [[value / length for value in vector] for vector, length in zip(flat, lengths, strict=True)]


def mean_kernel(one: list[list[float]], other: list[list[float]]) -> float:
    kernels = [sum(a * b for a, b in zip(x, y, strict=True)) ** 2 for x in one for y in other]
    return sum(kernels) / len(kernels)


def naive_nst(student: torch.Tensor, teacher: torch.Tensor) -> float:
    total = 0.0
    for s, t in naive.pairs(student, teacher):
        x, y = channels(s), channels(t)
        total += mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)
    return total / len(student)


@pytest.mark.parametrize(("student", "teacher"), [(3, 5), (3, 12), (12, 3), (2, 2), (6, 6)])
def test_value_and_gradient_are_those_of_naive_loops_whichever_side_is_larger(student, teacher):
    s, t = maps(2, student, 2, 3, seed=1).requires_grad_(), maps(2, teacher, 2, 3, seed=2)
    assert nst_loss(s, t).item() == pytest.approx(naive_nst(s, t), rel=1e-9)
    assert naive_nst(s, t) > 1e-3
    torch.autograd.gradcheck(nst_loss, (s, t))


def test_the_larger_map_is_averaged_down():
    student, teacher = maps(2, 4, 6, 4, seed=1), maps(2, 7, 3, 2, seed=2)
    pooled = student.unflatten(2, (3, 2)).unflatten(4, (2, 2)).mean(dim=(3, 5))
    assert nst_loss(student, teacher).item() == pytest.approx(naive_nst(pooled, teacher), rel=1e-9)


def test_layers_are_summed():
    sides = [[maps(2, c, 3, 3, seed=i + c) for i in (1, 2, 3)] for c in (4, 7)]
    wanted = sum(naive_nst(s, t) for s, t in zip(*sides, strict=True))
    assert NSTLoss()(*sides).item() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("size", [2, 4])
def test_it_is_invariant_to_order_sign_scale_and_repetition_of_channels(size):
    teacher = maps(2, 5, size, size)
    scale = torch.tensor([1.0, -2.0, 30.0, 0.1, -0.5]).view(1, 5, 1, 1)
    assert nst_loss((scale * teacher).flip(1).repeat(1, 2, 1, 1), teacher).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("channels", [2, 40])
def test_channels_of_zeros_have_no_gradient(channels):
    student = maps(2, channels, 3, 3, seed=1)
    student[:, 0] = 0
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(nst_loss(student, maps(2, 4, 3, 3, seed=2)), student)
    assert gradient[:, 0].abs().max() == 0
    assert gradient[:, 1:].abs().min() > 0


def plain_nst(m, s, t, y):
    s, t = F.normalize(s.flatten(2), dim=2), F.normalize(t.flatten(2), dim=2)
    s, t = s.mT @ s / s.shape[1], t.mT @ t / t.shape[1]
    return F.mse_loss(s, t, reduction="sum") / len(s)


def plain_nst_of_channels(m, s, t, y):
    s, t = F.normalize(s.flatten(2), dim=2), F.normalize(t.flatten(2), dim=2)
    return (s @ s.mT).square().mean() + (t @ t.mT).square().mean() - 2 * (s @ t.mT).square().mean()


PLAIN = {
    "NSTLoss": Plain(plain_nst, STUDENT, TEACHER),
    "NSTLoss of more positions than channels": Plain(plain_nst_of_channels, STUDENTS[0], TEACHERS[0]),
}
