from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.losses import LogitStandardizationKDLoss, logit_standardization_kd_loss
from tests.losses import naive
from tests.losses.case import Case, other_implementation
from tests.losses.plain import Plain, kd

# above, the gradient shows the rounding that T and 1 / std, which is up to 1000 as well, multiply
CASES = {"LogitStandardizationKDLoss": Case(hottest=100.0)}


def logits(seed: int, scale: float = 3.0, classes: int = 10) -> Tensor:
    return scale * torch.randn(5, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def z_scores(rows: Tensor) -> Tensor:
    """Standardise by `statistics.stdev`, which divides by C - 1."""
    return torch.tensor(
        [[(x - statistics.fmean(row)) / statistics.stdev(row) for x in row] for row in rows.tolist()],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("temperature", [0.5, 2.0, 50.0])
@pytest.mark.parametrize(("scale", "classes"), [(0.1, 10), (3.0, 10), (1e4, 10), (3.0, 2), (3.0, 3)])
def test_value_is_that_of_naive_loops(temperature, scale, classes):
    student, teacher = logits(1, scale, classes), logits(2, scale, classes)
    expected = naive.kd(z_scores(student), z_scores(teacher), temperature)
    found = LogitStandardizationKDLoss(temperature)(student, teacher)
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_gradient_is_that_of_torchdistill_and_so_is_the_value():
    theirs = other_implementation("torchdistill.losses.mid_level").LogitStdKDLoss("", "", "", "", 2.0, alpha=0.0)
    student, teacher = logits(1).requires_grad_(), logits(2)
    expected = 4 * theirs({"": {"": student}}, {"": {"": teacher}})  # which leaves T^2 out without labels
    found = logit_standardization_kd_loss(student, teacher)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


def test_it_is_invariant_to_scale_and_offset_of_the_logits():
    student, teacher = logits(1), logits(2)
    first = logit_standardization_kd_loss(student, teacher)
    factors = torch.tensor([[0.01], [0.3], [1.0], [30.0], [1e4]])
    torch.testing.assert_close(logit_standardization_kd_loss(factors * student - 7, teacher), first)
    torch.testing.assert_close(logit_standardization_kd_loss(student, factors * teacher + 9), first)
    assert logit_standardization_kd_loss(factors * teacher, teacher) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("equal", [0.0, 3.0, 1e4])
@pytest.mark.parametrize("apart", [0.0, 1e-7, 1e-4])
def test_nearly_equal_logits_have_finite_gradients(dtype, equal, apart):
    student = (equal + apart * logits(1)).to(dtype).requires_grad_()
    loss = logit_standardization_kd_loss(student, logits(2).to(dtype))
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert gradient.any()
    uniform = naive.kd(torch.zeros(5, 10), z_scores(logits(2).to(dtype).double()), 2.0)
    if not apart:
        assert loss.item() == pytest.approx(uniform, rel=1e-4)


def plain_logit_standardization(m, s, t, y):
    c = s.shape[1]
    s, t = F.layer_norm(s, (c,), eps=0), F.layer_norm(t, (c,), eps=0)
    temperature = 2 * math.sqrt(c / (c - 1))  # the deviation divides by C - 1
    return kd(m, s, t, y, temperature) * (c - 1) / c


PLAIN = {
    "LogitStandardizationKDLoss": Plain(plain_logit_standardization),
}
