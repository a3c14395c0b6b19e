import math

import pytest
import torch
from torch.nn import functional as F

from kd_lightning import losses
from kd_lightning.losses import SRDLoss, srd_loss
from tests.losses.case import Case, other_implementation
from tests.losses.plain import STUDENT, TEACHER, Plain


def build(exponent: float = 4.0) -> SRDLoss:
    torch.manual_seed(0)
    return SRDLoss(student_channels=3, teacher_channels=4, exponent=exponent)


CASES = {
    "SRDLoss": Case(
        build,
        student=(6, 3, 4, 4),
        teacher=(6, 4, 2, 2),
        minimum="elsewhere",
        wrong=[((6, 3), (5, 4)), ((1, 3), (1, 4)), ((0, 3), (0, 4)), ((3,), (4,))],
    ),
    "SRDLoss of vectors": Case(build, student=(6, 3), teacher=(6, 4), minimum="elsewhere"),
}


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normalised(column: list[float]) -> list[float]:
    mean = sum(column) / len(column)
    variance = sum((value - mean) ** 2 for value in column) / len(column)
    return [(value - mean) / math.sqrt(variance + 1e-4) for value in column]


def naive_srd(student: torch.Tensor, teacher: torch.Tensor, exponent: float) -> float:
    total = 1e-5
    for s, t in zip(student.T.tolist(), teacher.T.tolist(), strict=True):
        total += sum(abs(a - b) ** exponent for a, b in zip(normalised(s), normalised(t), strict=True))
    return math.log(total)


@pytest.mark.parametrize("exponent", [1.5, 2.0, 3.0, 4.0])
def test_value_and_gradient_are_those_of_naive_loops(exponent):
    student, teacher = features(5, 3, seed=1).requires_grad_(), features(5, 3, seed=2)
    value = srd_loss(student, teacher, exponent).item()
    assert value == pytest.approx(naive_srd(student, teacher, exponent), rel=1e-9)
    torch.autograd.gradcheck(lambda student: srd_loss(student, teacher, exponent), (student,))


def test_maps_are_averaged_over_positions_and_the_student_is_projected():
    loss = build().double()
    student, teacher = features(5, 3, 4, 2, seed=1), features(5, 4, 2, 2, seed=2)
    projected = student.mean(dim=(2, 3)) @ loss.connector.weight.T
    wanted = naive_srd(projected, teacher.mean(dim=(2, 3)), 4.0)
    assert loss(student, teacher).item() == pytest.approx(wanted, rel=1e-9)


def test_it_is_invariant_to_scale_and_a_common_offset():
    student, teacher = features(9, 3, seed=1), features(9, 3, seed=2)
    value = srd_loss(student, teacher).item()
    assert srd_loss(100 * student + 1e4, teacher - 7).item() == pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_a_common_offset_costs_no_precision(offset: float):
    loss, student, teacher = build(), features(9, 3, seed=1), features(9, 4, seed=2)
    shifted = (student + offset).float()
    exact = build().double()(shifted.double(), teacher)
    assert loss(shifted, teacher.float()).item() == pytest.approx(exact.item(), rel=1e-4)


def test_at_equality_it_is_smallest_finite_and_without_gradient():
    student = features(5, 3).requires_grad_()
    least = srd_loss(student, student.detach())
    (gradient,) = torch.autograd.grad(least, student)
    assert least.item() == pytest.approx(math.log(1e-5))
    assert gradient.abs().max() == 0
    assert srd_loss(student + 1e-3 * features(5, 3, seed=1), student) > least


def test_twice_the_loss_plus_a_divergence_equals_torchdistill():
    mid_level = other_implementation("torchdistill.losses.mid_level")
    theirs = mid_level.SRDLoss(*(["features", "output"] * 2), *(["logits", "output"] * 2), exponent=4.0)
    sides = [features(5, 3, seed=seed) for seed in (1, 2)]
    norm = torch.nn.BatchNorm1d(3, eps=1e-4, affine=False, dtype=torch.float64)
    logits = [{"output": features(5, 4, seed=seed)} for seed in (3, 4)]
    seen = [{"features": {"output": norm(side)}, "logits": logit} for side, logit in zip(sides, logits, strict=True)]
    s, t = (logit["output"].log_softmax(dim=1) for logit in logits)
    divergence = (t.exp() * (t - s)).sum(dim=1).mean()
    assert (2 * srd_loss(*sides) + divergence).item() == pytest.approx(theirs(*seen).item(), rel=1e-5)


@pytest.mark.parametrize("exponent", [1.0, 0.0, -4.0, float("nan"), float("inf")])
def test_an_invalid_exponent_is_refused(exponent):
    with pytest.raises(ValueError, match="must be a finite number above 1"):
        build(exponent)
    with pytest.raises(ValueError, match="must be a finite number above 1"):
        srd_loss(features(3, 2), features(3, 2), exponent)


def test_another_width_is_refused():
    with pytest.raises(ValueError, match="set its student_channels to 4"):
        build()(torch.zeros(2, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="set its teacher_channels to 3"):
        build()(torch.zeros(2, 3), torch.zeros(2, 3))


def plain_srd(m, s, t, y):
    s, t = m.connector(s.mean((2, 3))), t.mean((2, 3))
    s, t = (F.batch_norm(x, None, None, training=True, eps=1e-4) for x in (s, t))
    return ((s - t).pow(4).sum() + 1e-5).log()


PLAIN = {
    "SRDLoss": Plain(plain_srd, STUDENT, TEACHER, build=lambda: losses.SRDLoss(32, 128)),
}
