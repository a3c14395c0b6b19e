import math

import pytest
import torch
from torch.nn import functional as F

from kd_lightning import losses
from kd_lightning.losses import FactorTransferLoss, factor_transfer_loss
from tests.losses import naive
from tests.losses.case import Case, other_implementation
from tests.losses.plain import STUDENT, N, Plain


def build() -> FactorTransferLoss:
    torch.manual_seed(0)
    return FactorTransferLoss(student_channels=3, factor_channels=4)


CASES = {
    "FactorTransferLoss": Case(
        build,
        student=(6, 3, 4, 4),
        teacher=(6, 4, 4, 4),
        minimum="elsewhere",
        kinked=True,
        wrong=[
            ((6, 3, 4, 4), (6, 5, 4, 4)),
            ((6, 3, 4, 4), (5, 4, 4, 4)),
            ((6, 3), (6, 4)),
            ((0, 3, 4, 4), (0, 4, 4, 4)),
        ],
    )
}


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_ft(student: torch.Tensor, teacher: torch.Tensor) -> float:
    errors: list[float] = []
    for s, t in naive.pairs(student.flatten(1), teacher.flatten(1)):
        lengths = [math.sqrt(sum(value**2 for value in row)) for row in (s, t)]
        errors += [abs(a / lengths[0] - b / lengths[1]) for a, b in zip(s, t, strict=True)]
    return sum(errors) / len(errors)


def test_value_is_that_of_naive_loops():
    student, teacher = maps(3, 4, 3, 2, seed=1), maps(3, 4, 3, 2, seed=2)
    assert factor_transfer_loss(student, teacher).item() == pytest.approx(naive_ft(student, teacher), rel=1e-9)


def test_the_larger_map_is_averaged_down():
    student, teacher = maps(2, 4, 6, 4, seed=1), maps(2, 4, 3, 2, seed=2)
    pooled = student.unflatten(2, (3, 2)).unflatten(4, (2, 2)).mean(dim=(3, 5))
    assert factor_transfer_loss(student, teacher).item() == pytest.approx(naive_ft(pooled, teacher), rel=1e-9)


def test_it_is_invariant_to_the_length_of_a_factor():
    student, teacher = maps(2, 4, 3, 3, seed=1), maps(2, 4, 3, 3, seed=2)
    assert factor_transfer_loss(7 * student, 0.1 * teacher).item() == pytest.approx(naive_ft(student, teacher))
    assert factor_transfer_loss(7 * student, student).item() == pytest.approx(0, abs=1e-15)


def test_a_factor_of_zeros_gets_no_gradient():
    student = torch.zeros(2, 4, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(factor_transfer_loss(student, maps(2, 4, 3, 3).float()), student)
    assert gradient.abs().max() == 0


def test_the_translator_is_three_convolutions_with_batch_norm_and_leaky_relu():
    loss = build().double()
    student, teacher = maps(3, 3, 4, 4, seed=1), maps(3, 4, 4, 4, seed=2)
    values = student
    for convolution, norm, width in zip(loss.translator[::3], loss.translator[1::3], (3, 4, 4), strict=True):
        values = torch.nn.functional.conv2d(values, convolution.weight, convolution.bias, padding=1)
        variance, mean = torch.var_mean(values, dim=(0, 2, 3), correction=0, keepdim=True)
        values = (values - mean) / (variance + norm.eps).sqrt()
        values = torch.where(values > 0, values, 0.1 * values)
        assert values.shape == (3, width, 4, 4)
    assert loss(student, teacher).item() == pytest.approx(naive_ft(values.detach(), teacher), rel=1e-9)


def test_it_equals_torchdistill():
    student, teacher = maps(3, 4, 3, 3, seed=1).float(), maps(3, 4, 3, 3, seed=2).float()
    theirs = other_implementation("torchdistill.losses.mid_level").FTLoss()
    value = theirs({"translator": {"output": student}}, {"paraphraser": {"output": teacher}})
    torch.testing.assert_close(factor_transfer_loss(student, teacher), value, rtol=1e-5, atol=0)


def test_another_width_is_refused():
    with pytest.raises(ValueError, match="set its student_channels to 4"):
        build()(torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3))


def plain_factor_transfer(m, s, t, y):
    return F.l1_loss(F.normalize(m.translator(s).flatten(1)), F.normalize(t.flatten(1)))


PLAIN = {
    "FactorTransferLoss": Plain(
        plain_factor_transfer, STUDENT, (N, 64, 6, 6), build=lambda: losses.FactorTransferLoss(32, 64)
    ),
}
