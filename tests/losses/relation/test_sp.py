import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.losses.relation.sp import SPLoss, sp_loss
from tests.losses.case import Case, other_implementation
from tests.losses.plain import STUDENT, TEACHER, Plain

WRONG = [((6, 4), (5, 4)), ((1, 4), (1, 4)), ((0, 4), (0, 4)), ((6,), (6,)), ((6, 0), (6, 4))]
CASES = {
    "SPLoss": Case(wrong=WRONG),
    "SPLoss of two layers": Case(SPLoss, [(6, 3, 4, 4), (6, 5)], [(6, 5, 2, 2), (6, 5)]),
}


def rows(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def similarities(samples: list[list[float]]) -> list[list[float]]:
    products = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in samples] for x in samples]
    return [[value / (math.hypot(*row) or 1) for value in row] for row in products]


def naive(student: Tensor, teacher: Tensor) -> float:
    s, t = similarities(student.flatten(1).tolist()), similarities(teacher.flatten(1).tolist())
    n = len(s)
    return sum((s[i][j] - t[i][j]) ** 2 for i in range(n) for j in range(n)) / n**2


@pytest.mark.parametrize(("student", "teacher"), [((7, 4), (7, 9)), ((3, 2, 3, 3), (3, 5)), ((2, 1), (2, 3))])
def test_value_is_that_of_naive_loops(student, teacher):
    s, t = rows(*student, seed=1), rows(*teacher, seed=2)
    assert SPLoss()(s, t).item() == pytest.approx(naive(s, t), rel=1e-9)
    s[0] = 0
    assert SPLoss()(s, t).item() == pytest.approx(naive(s, t), rel=1e-9)


def test_layers_add_up():
    s, t = [rows(4, 3, seed=1), rows(4, 2, 2, 2, seed=2)], [rows(4, 5, seed=3), rows(4, 7, seed=4)]
    assert SPLoss()(s, t).item() == pytest.approx(naive(s[0], t[0]) + naive(s[1], t[1]), rel=1e-9)


def test_torchdistill_divides_rows_by_their_absolute_sum_and_not_their_length():
    there = other_implementation("torchdistill.losses.mid_level").SPKDLoss("conv", "conv", "batchmean")
    s, t = rows(8, 3, 2, 2, seed=1), rows(8, 5, seed=2)
    theirs = there({"conv": {"output": s}}, {"conv": {"output": t}})
    s, t = (similarities(x.flatten(1).tolist()) for x in (s, t))
    s, t = ([[value / sum(map(abs, row)) for value in row] for row in x] for x in (s, t))
    squares = [(a - b) ** 2 for x, y in zip(s, t, strict=True) for a, b in zip(x, y, strict=True)]
    assert theirs.item() == pytest.approx(sum(squares) / 8**2, rel=1e-5)


def test_it_is_invariant_to_rotation_and_a_common_scale_but_not_to_the_scale_of_one_sample():
    s, t = rows(6, 4, seed=1), rows(6, 4, seed=2)
    rotation, _ = torch.linalg.qr(rows(4, 4, seed=3))
    loss = sp_loss(s, t).item()
    assert sp_loss(5 * s @ rotation, t).item() == pytest.approx(loss, rel=1e-9)
    s[0] *= 5
    assert abs(sp_loss(s, t).item() - loss) > 1e-3


def test_a_sample_of_zeros_has_no_gradient_and_does_not_change_that_of_others():
    s, t = rows(5, 4, seed=1), rows(5, 4, seed=2)
    s[0] = 0
    (gradient,) = torch.autograd.grad(sp_loss(s.requires_grad_(), t), s)
    assert gradient[1:].abs().max() < 1
    assert gradient.isfinite().all()


def plain_sp(m, s, t, y):
    s, t = s.flatten(1), t.flatten(1)
    return F.mse_loss(F.normalize(s @ s.T), F.normalize(t @ t.T))


PLAIN = {
    "SPLoss": Plain(plain_sp, STUDENT, TEACHER),
}
