import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.losses.relation.cc import CCLoss, cc_loss
from tests.losses.case import Case, other_implementation
from tests.losses.plain import ROWS, Plain

WRONG = [((6, 4), (5, 4)), ((1, 4), (1, 4)), ((0, 4), (0, 4)), ((6,), (6,)), ((6, 0), (6, 4))]
CASES = {
    "CCLoss": Case(wrong=WRONG),
    "CCLoss of maps": Case(CCLoss, (6, 3, 4, 4), (6, 5, 2, 2)),
    "CCLoss of the first order": Case(lambda: CCLoss(gamma=1.5, order=1)),
}


def rows(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kernel(a: list[float], b: list[float], gamma: float, order: int) -> float:
    """exp(-gamma ||a - b||^2) = exp(-2 gamma) exp(2 gamma a^T b) for unit vectors, with the last factor expanded."""
    cosine = sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b) or 1)
    return math.exp(-2 * gamma) * sum((2 * gamma * cosine) ** p / math.factorial(p) for p in range(order + 1))


def naive(student: Tensor, teacher: Tensor, gamma: float, order: int) -> float:
    s, t = student.flatten(1).tolist(), teacher.flatten(1).tolist()
    total = 0.0
    for i in range(len(s)):
        for j in range(len(s)):
            total += (kernel(s[i], s[j], gamma, order) - kernel(t[i], t[j], gamma, order)) ** 2
    return total / len(s) ** 2


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (0.4, 1), (1.0, 5)])
@pytest.mark.parametrize(("student", "teacher"), [((7, 4), (7, 9)), ((3, 2, 3, 3), (3, 5)), ((2, 1), (2, 3))])
def test_value_is_that_of_naive_loops(student, teacher, gamma, order):
    s, t = rows(*student, seed=1), rows(*teacher, seed=2)
    assert CCLoss(gamma, order)(s, t).item() == pytest.approx(naive(s, t, gamma, order), rel=1e-9)
    assert (gamma, order) != (0.4, 2) or cc_loss(s, t) == CCLoss()(s, t)


def test_a_long_expansion_is_the_gaussian_kernel():
    s, t = (rows(6, 4, seed=seed) for seed in (1, 2))
    gaussian = [
        torch.exp(-0.4 * torch.cdist(x, x) ** 2)
        for x in (s / s.norm(dim=1, keepdim=True), t / t.norm(dim=1, keepdim=True))
    ]
    assert cc_loss(s, t, order=12).item() == pytest.approx(((gaussian[0] - gaussian[1]) ** 2).mean().item(), rel=1e-6)


def test_torchdistill_has_the_same_kernel_and_the_root_of_the_squared_distance():
    config = {"type": "gaussian", "gamma": 0.4, "max_p": 2}
    there = other_implementation("torchdistill.losses.mid_level").CCKDLoss("pool", "pool", config, "batchmean")
    s, t = (
        torch.nn.functional.normalize(rows(8, 5, seed=seed)) for seed in (1, 2)
    )  # it takes them as long as they are
    theirs = there({"pool": {"output": s}}, {"pool": {"output": t}})
    assert cc_loss(s, t).item() == pytest.approx((theirs.item() * 8**2) ** 2 / 8**2, rel=1e-5)


def test_it_is_invariant_to_rotation_and_to_the_length_of_each_sample():
    s, t = rows(6, 4, seed=1), rows(6, 4, seed=2)
    rotation, _ = torch.linalg.qr(rows(4, 4, seed=3))
    lengths = torch.arange(1.0, 7.0).double().unsqueeze(1)
    assert cc_loss(lengths * s @ rotation, t).item() == pytest.approx(cc_loss(s, t).item(), rel=1e-9)


@pytest.mark.parametrize(("gamma", "order"), [(0.0, 2), (-1.0, 2), (math.nan, 2), (math.inf, 2), (0.4, 0)])
def test_invalid_kernels_are_refused(gamma, order):
    with pytest.raises(
        ValueError, match=f"gamma={gamma} must be a finite number above 0, .* and order={order} at least 1"
    ):
        CCLoss(gamma, order)


def plain_cc(m, s, t, y):
    s, t = (0.8 * x @ x.T for x in (F.normalize(s), F.normalize(t)))
    return F.mse_loss(s + s.square() / 2, t + t.square() / 2) * math.exp(-1.6)


PLAIN = {
    "CCLoss": Plain(plain_cc, *ROWS),
}
