import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.losses.relation.pkt import PKTLoss, pkt_loss
from tests.losses.case import Case, other_implementation
from tests.losses.plain import ROWS, Plain

WRONG = [((6, 4), (5, 4)), ((1, 4), (1, 4)), ((0, 4), (0, 4)), ((6,), (6,)), ((6, 0), (6, 4))]
CASES = {  # the 1e-7 moves the minimum
    "PKTLoss": Case(minimum="elsewhere", wrong=WRONG),
    "PKTLoss of maps": Case(PKTLoss, (6, 3, 4, 4), (6, 5, 2, 2)),
}


def rows(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def choices(samples: list[list[float]]) -> list[list[float]]:
    def kernel(a: list[float], b: list[float]) -> float:
        lengths = math.hypot(*a) * math.hypot(*b)
        return (1 + (sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0)) / 2

    kernels = [[kernel(a, b) for b in samples] for a in samples]
    return [[value / sum(row) for value in row] for row in kernels]


def naive(student: Tensor, teacher: Tensor) -> float:
    s, t = choices(student.flatten(1).tolist()), choices(teacher.flatten(1).tolist())
    pairs = [(s[i][j], t[i][j]) for i in range(len(s)) for j in range(len(s))]
    return sum(b * math.log((b + 1e-7) / (a + 1e-7)) for a, b in pairs) / len(pairs)


@pytest.mark.parametrize(("student", "teacher"), [((7, 4), (7, 9)), ((3, 2, 3, 3), (3, 5)), ((2, 1), (2, 3))])
def test_value_is_that_of_naive_loops(student, teacher):
    s, t = rows(*student, seed=1), rows(*teacher, seed=2)
    assert PKTLoss()(s, t).item() == pytest.approx(naive(s, t), rel=1e-8)
    s[0] = 0
    assert PKTLoss()(s, t).item() == pytest.approx(naive(s, t), rel=1e-8)


def test_torchdistill_agrees():
    there = other_implementation("torchdistill.losses.mid_level").PKTLoss("pool", "output", "pool", "output")
    s, t = rows(8, 5, seed=1).requires_grad_(), rows(8, 9, seed=2)
    ours, theirs = pkt_loss(s, t), there({"pool": {"output": s}}, {"pool": {"output": t}})
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    torch.testing.assert_close(*(torch.autograd.grad(loss, s)[0] for loss in (ours, theirs)), rtol=1e-4, atol=1e-7)


def test_it_is_nearly_zero_where_both_agree_and_larger_elsewhere():
    t = rows(6, 4, seed=2)
    assert abs(pkt_loss(t, t).item()) < 1e-12
    for scale in (0.01, 0.1, 1.0, 10.0):
        assert pkt_loss(t + scale * rows(6, 4, seed=3), t) > 0


def test_it_is_invariant_to_rotation_and_to_the_length_of_each_sample():
    s, t = rows(6, 4, seed=1), rows(6, 4, seed=2)
    rotation, _ = torch.linalg.qr(rows(4, 4, seed=3))
    lengths = torch.arange(1.0, 7.0).double().unsqueeze(1)
    assert pkt_loss(lengths * s @ rotation, t).item() == pytest.approx(pkt_loss(s, t).item(), rel=1e-9)


def test_opposite_samples_have_a_gradient_and_samples_of_zeros_none():
    s, t = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]], requires_grad=True), rows(3, 4, seed=2).float()
    (gradient,) = torch.autograd.grad(pkt_loss(s, t), s)
    assert gradient.isfinite().all()
    assert not gradient[2].any()


def plain_pkt(m, s, t, y):
    s, t = (1 + x @ x.T for x in (F.normalize(s), F.normalize(t)))
    s, t = s / s.sum(1, keepdim=True), t / t.sum(1, keepdim=True)
    return (t * ((t + 1e-7) / (s + 1e-7)).log()).mean()


PLAIN = {
    "PKTLoss": Plain(plain_pkt, *ROWS),
}
