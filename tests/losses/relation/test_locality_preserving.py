import math

import pytest
import torch
from torch import Tensor

from kd_lightning import losses
from kd_lightning.losses.relation.locality_preserving import LocalityPreservingLoss, locality_preserving_loss
from tests.losses.case import Case
from tests.losses.plain import ROWS, Plain

WRONG = [((6, 4), (5, 4)), ((1, 4), (1, 4)), ((0, 4), (0, 4)), ((6,), (6,)), ((6, 0), (6, 4))]
CASES = {
    "LocalityPreservingLoss": Case(
        lambda: LocalityPreservingLoss(neighbours=3, width=4.0),
        (6, 4),
        (6, 7),
        minimum="elsewhere",  # where all samples of the student are one
        kinked=True,  # who is nearest
        limits={torch.float16: 1e3},  # its gradient grows with the features
        wrong=WRONG,
    ),
    "LocalityPreservingLoss of the batch's width": Case(
        lambda: LocalityPreservingLoss(neighbours=3),
        (6, 4),
        (6, 7),
        minimum="elsewhere",
        kinked=True,
        limits={torch.float16: 1e3},
    ),
}


def rows(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive(student: Tensor, teacher: Tensor, neighbours: int, width: float | None) -> float:
    s, t = student.flatten(1).tolist(), teacher.flatten(1).tolist()
    pairs = []
    for i in range(len(s)):
        others = sorted((j for j in range(len(s)) if j != i), key=lambda j: math.dist(t[i], t[j]))
        pairs += [(i, j) for j in others[:neighbours]]
    squares = [math.dist(t[i], t[j]) ** 2 for i, j in pairs]
    square = sum(squares) / len(squares) if width is None else width**2
    total = sum(math.exp(-d / square) * math.dist(s[i], s[j]) ** 2 for d, (i, j) in zip(squares, pairs, strict=True))
    return total / (2 * len(s))


@pytest.mark.parametrize(("neighbours", "width"), [(5, 1.0), (1, 2.0), (3, 0.5), (99, 3.0), (5, None), (3, None)])
@pytest.mark.parametrize(("student", "teacher"), [((9, 4), (9, 3)), ((3, 2, 3, 3), (3, 2)), ((2, 3), (2, 1))])
def test_value_is_that_of_naive_loops(student, teacher, neighbours, width):
    s, t = rows(*student, seed=1), rows(*teacher, seed=2)
    expected = naive(s, t, neighbours, width)
    assert LocalityPreservingLoss(neighbours, width)(s, t).item() == pytest.approx(expected, rel=1e-9)
    if (neighbours, width) == (5, None):
        assert locality_preserving_loss(s, t).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_batchs_own_width_does_not_depend_on_the_teachers_scale_and_width(scale: float):
    s, t = rows(64, 512, seed=1).requires_grad_(), rows(64, 512, seed=2)
    loss = locality_preserving_loss(s, scale * t)
    assert loss.item() == pytest.approx(locality_preserving_loss(s, t).item(), rel=1e-9)
    squares = torch.cdist(s, s).square().sum().item() / (64 * 63)
    assert loss.item() == pytest.approx(5 / 2 * math.exp(-1) * squares, rel=0.05)  # 512 values are all equally far
    assert torch.autograd.grad(loss, s)[0].any(dim=1).all()
    assert locality_preserving_loss(s, t, width=1.0) == 0


def test_it_is_zero_if_all_samples_of_the_student_coincide():
    assert locality_preserving_loss(torch.ones(4, 3), rows(4, 2, seed=1)) == 0


def test_coinciding_samples_are_neighbours_but_no_sample_is_its_own():
    s, t = torch.tensor([[0.0], [1.0], [5.0]], requires_grad=True), torch.zeros(3, 2)
    loss = locality_preserving_loss(s, t, neighbours=2)
    assert loss.item() == pytest.approx((1 + 25 + 1 + 16 + 25 + 16) / 6)
    (gradient,) = torch.autograd.grad(loss, s)
    torch.testing.assert_close(gradient.flatten().tolist(), [2 * -6 / 3, 2 * -3 / 3, 2 * 9 / 3])


@pytest.mark.parametrize(("neighbours", "width"), [(0, 1.0), (5, 0.0), (5, -1.0), (5, math.nan), (5, math.inf)])
def test_invalid_neighbourhoods_are_refused(neighbours, width):
    with pytest.raises(ValueError, match=f"neighbours={neighbours} must be at least 1 and width={width} a finite"):
        LocalityPreservingLoss(neighbours, width)


def plain_locality_preserving(m, s, t, y):
    distances, nearest = (found[:, 1:] for found in torch.cdist(t, t).topk(6, largest=False))  # the first is itself
    weights = (-(distances / 32).square()).exp()
    return (weights * (s.unsqueeze(1) - s[nearest]).square().sum(2)).sum() / (2 * len(s))


PLAIN = {
    "LocalityPreservingLoss": Plain(
        plain_locality_preserving, *ROWS, build=lambda: losses.LocalityPreservingLoss(width=32.0)
    ),
}
