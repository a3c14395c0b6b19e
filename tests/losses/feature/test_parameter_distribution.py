import math

import pytest
import torch
from torch.nn import functional as F

from kd_lightning.losses import ParameterDistributionLoss, parameter_distribution_loss
from tests.losses.case import Case
from tests.losses.plain import Plain

CASES = {
    "ParameterDistributionLoss": Case(
        student=(6, 3, 2, 2),
        teacher=(8, 6, 3, 3),
        samples=False,
        kinked=True,  # where two weights are equal
        wrong=[((6, 3, 2, 2), (0, 6, 3, 3)), ((0, 3), (6, 3))],
    ),
    "ParameterDistributionLoss of two layers": Case(
        ParameterDistributionLoss, student=[(6, 3), (6,)], teacher=[(6, 3), (6,)], samples=False, kinked=True
    ),
}


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def in_order(values: torch.Tensor) -> list[float]:
    flat = values.flatten().tolist()
    scale = math.sqrt(sum(value**2 for value in flat) / len(flat))
    return sorted(value / scale for value in flat)


def naive_distance(student: torch.Tensor, teacher: torch.Tensor) -> float:
    """The d-th smallest against the mean of the d-th part; a value on a border belongs to both parts."""
    ours, theirs = in_order(student), in_order(teacher)
    total = 0.0
    for d, value in enumerate(ours):
        start, end = d * len(theirs) // len(ours), -(-(d + 1) * len(theirs) // len(ours))
        total += (value - sum(theirs[start:end]) / (end - start)) ** 2
    return total / len(ours)


@pytest.mark.parametrize(("student", "teacher"), [((4, 3), (4, 3)), ((4, 3), (6, 6)), ((5,), (3, 4)), ((7, 2), (3, 2))])
def test_value_and_gradient_are_those_of_naive_loops(student, teacher):
    s, t = weights(*student, seed=1).requires_grad_(), weights(*teacher, seed=2).requires_grad_()
    loss = parameter_distribution_loss(s, t)
    assert loss.item() == pytest.approx(naive_distance(s.detach(), t.detach()), rel=1e-9)
    torch.autograd.gradcheck(parameter_distribution_loss, (s, t))


def test_layers_are_summed():
    student, teacher = [weights(3, 2, seed=1), weights(4, seed=2)], [weights(6, 2, seed=3), weights(8, seed=4)]
    wanted = sum(naive_distance(s, t) for s, t in zip(student, teacher, strict=True))
    assert ParameterDistributionLoss()(student, teacher).item() == pytest.approx(wanted, rel=1e-9)


def test_it_is_invariant_to_order_shape_and_scale():
    student = weights(6, 4)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    assert parameter_distribution_loss(student, 5 * student.flatten()[order].view(4, 6)).item() < 1e-20
    assert parameter_distribution_loss(student, -student).item() > 1e-3  # signs do


def test_with_parts_of_one_size_no_other_matching_is_nearer():
    student, teacher = weights(4, seed=1), weights(8, seed=2)
    generator, found = torch.Generator().manual_seed(0), parameter_distribution_loss(student, teacher).item()
    ours, theirs = in_order(student), in_order(teacher)
    within = sum((b - sum(theirs[2 * (i // 2) :][:2]) / 2) ** 2 for i, b in enumerate(theirs)) / 8  # stays in any case
    for _ in range(100):
        shuffled = torch.randperm(8, generator=generator).tolist()
        cost = sum((ours[place // 2] - theirs[i]) ** 2 for i, place in enumerate(shuffled)) / 8
        assert found + within <= cost + 1e-12


def test_weights_of_zero_have_a_finite_gradient():
    student = torch.zeros(4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(parameter_distribution_loss(student, weights(4, 3).float()), student)
    assert not gradient.any()


def test_it_learns_the_distribution():
    student, teacher = weights(40, seed=1).requires_grad_(), weights(80, seed=2).exp()
    optimizer = torch.optim.Adam([student], lr=0.1)
    first = parameter_distribution_loss(student, teacher).item()
    for _ in range(100):
        optimizer.zero_grad()
        parameter_distribution_loss(student, teacher).backward()
        optimizer.step()
    assert parameter_distribution_loss(student, teacher).item() < 0.02 * first


def plain_parameter_distribution(m, s, t, y):
    s, t = (F.normalize(x.flatten(), dim=0).sort().values * math.sqrt(x.numel()) for x in (s, t))
    return F.mse_loss(s, F.adaptive_avg_pool1d(t.unsqueeze(0), len(s)).squeeze(0))


PLAIN = {
    "ParameterDistributionLoss": Plain(plain_parameter_distribution, (32, 32, 3, 3), (128, 128, 3, 3)),
}
