import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kd_lightning import losses
from kd_lightning.losses import AFDLoss, afd_loss
from tests.losses.case import Case
from tests.losses.plain import STUDENTS, TEACHERS, WIDTHS, Plain


def build() -> AFDLoss:
    torch.manual_seed(0)
    return AFDLoss([3, 2], [5, 4, 3], dimension=4)


STUDENT, TEACHER = [(6, 3, 4, 4), (6, 2, 2, 2)], [(6, 5, 4, 4), (6, 4, 3, 3), (6, 3, 2, 2)]
CASES = {
    "AFDLoss": Case(
        build,
        student=STUDENT,
        teacher=TEACHER,
        minimum="elsewhere",
        kinked=True,
        wrong=[
            (STUDENT, [*TEACHER[:2], (5, 3, 2, 2)]),
            ([STUDENT[0], (6, 2)], TEACHER),
        ],
    )
}


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def example() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return [maps(*shape, seed=1) for shape in STUDENT], [maps(*shape, seed=2) for shape in TEACHER]


def through(layer: nn.Sequential, rows: torch.Tensor) -> torch.Tensor:
    """A linear layer, normalised by the rows' mean and variance."""
    x = rows @ layer[0].weight.T
    return (x - x.mean(dim=0)) / (x.var(dim=0, correction=0) + 1e-5).sqrt()


def naive_attention(loss: AFDLoss, student: list[torch.Tensor], teacher: list[torch.Tensor]) -> torch.Tensor:
    """Queries from the teacher and keys from the student; the bilinear layer normalises over all layers together."""
    queries = [through(layer, t.mean(dim=(2, 3))) for layer, t in zip(loss.queries, teacher, strict=True)]
    keys = [through(layer, s.mean(dim=(2, 3))).clamp(min=0) for layer, s in zip(loss.keys, student, strict=True)]
    mapped = through(loss.bilinear, torch.cat(keys))  # all samples of the first layer, then of the second
    found = torch.zeros(6, len(teacher), len(student), dtype=torch.float64)
    for n in range(6):
        for j, query in enumerate(queries):
            scores = []
            for i in range(len(student)):
                key = mapped[6 * i + n][4 * j : 4 * (j + 1)]
                position = loss.teacher_positions[j] @ loss.student_positions[i]
                scores.append(math.exp(((key @ query[n] + position) / 2).item()))
            for i, score in enumerate(scores):
                found[n, j, i] = score / sum(scores)
    return found


def energy(features: torch.Tensor, size: int) -> list[list[float]]:
    """For each sample, means of squares over channels and over each cell, as a unit vector."""
    squares, of = features.square().mean(dim=1), features.shape[2]
    bounds = [(k * of // size, -(-(k + 1) * of // size)) for k in range(size)]
    rows = [[sample[a:b, c:d].mean().item() for a, b in bounds for c, d in bounds] for sample in squares]
    return [[value / math.sqrt(sum(v**2 for v in row)) for value in row] for row in rows]


def naive_afd(attention: torch.Tensor, student: list[torch.Tensor], teacher: list[torch.Tensor]) -> float:
    total = 0.0
    for j, t in enumerate(teacher):
        for i, s in enumerate(student):
            sides = zip(energy(s, t.shape[2]), energy(t, t.shape[2]), strict=True)
            for n, (own, wanted) in enumerate(sides):
                error = sum((a - b) ** 2 for a, b in zip(own, wanted, strict=True)) / len(own)
                total += attention[n, j, i].item() * error
    return total / 6


def test_value_is_that_of_naive_loops():
    loss, (student, teacher) = build().double(), example()
    for norm in (layer for layer in loss.modules() if isinstance(layer, nn.BatchNorm1d)):
        assert norm.weight.eq(1).all()
    attention = loss.attention(student, teacher)
    torch.testing.assert_close(attention, naive_attention(loss, student, teacher), rtol=1e-9, atol=0)
    assert attention.std(dim=2).min() > 1e-3  # it prefers some layers
    assert loss(student, teacher).item() == pytest.approx(naive_afd(attention, student, teacher), rel=1e-9)


def test_the_attention_is_computed_in_single_precision_at_least():
    loss, (student, teacher) = build(), example()
    found = loss.attention([s.float() for s in student], [t.float() for t in teacher])
    exact = build().double().attention(student, teacher)
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=0)


def test_maps_of_unlike_sides_are_pooled_to_the_teachers():
    loss = AFDLoss([3], [5], dimension=4).double()
    student, teacher = maps(4, 3, 4, 6, seed=1), maps(4, 5, 2, 3, seed=2)
    pooled = student.square().mean(dim=1).unflatten(2, (3, 2)).unflatten(1, (2, 2)).mean(dim=(2, 4)).flatten(1)
    wanted = teacher.square().mean(dim=1).flatten(1)
    error = F.normalize(pooled, dim=1) - F.normalize(wanted, dim=1)
    torch.testing.assert_close(loss([student], [teacher]), error.square().mean())  # all attention to the only layer


def test_the_gradient_is_that_of_the_value():
    loss, (student, teacher) = build().double(), example()
    inputs = [layer.requires_grad_() for layer in [*student, *teacher]]
    torch.autograd.gradcheck(lambda *layers: loss([*layers[:2]], [*layers[2:]]), inputs, fast_mode=True)


def test_it_is_zero_for_equal_energies_of_different_features():
    loss = AFDLoss([4], [8], dimension=4).double()
    student = maps(6, 4, 3, 3)
    teacher = 7 * student.repeat(1, 2, 1, 1).flip(1) * torch.tensor([1.0, -1.0]).repeat(4).view(1, 8, 1, 1)
    assert loss(student, teacher).item() == pytest.approx(0, abs=1e-20)


def test_a_layer_without_attention_has_no_gradient():
    student = maps(2, 2, 3).requires_grad_()
    attention = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    (gradient,) = torch.autograd.grad(afd_loss([student], [maps(2, 3, seed=1)], attention), student)
    assert gradient.any(dim=2).tolist() == [[True, False], [False, True]]


def test_features_of_zeros_have_no_direction_and_no_gradient():
    student, teacher = [torch.zeros(shape, requires_grad=True) for shape in STUDENT], [torch.zeros(s) for s in TEACHER]
    loss = build()(student, teacher)
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, student))


def test_invalid_arguments_and_inputs_are_refused():
    student, teacher = example()
    with pytest.raises(
        ValueError, match="2 layers of the student and 2 of the teacher, but the loss was built for 2 and 3"
    ):
        build()(student, teacher[:2])
    with pytest.raises(ValueError, match="must name a width"):
        AFDLoss([3], [])
    with pytest.raises(ValueError, match=r"must be vectors \(N, S, P\) and \(N, P\)"):
        afd_loss([torch.zeros(2, 3, 4)], [torch.zeros(2, 5)], torch.zeros(2, 1, 3))
    with pytest.raises(ValueError, match=r"attention \(2, 3, 1\) does not fit errors \(2, 1, 3\)"):
        afd_loss([torch.zeros(2, 3, 4)], [torch.zeros(2, 4)], torch.zeros(2, 3, 1))


def plain_afd(m, s, t, y):
    queries = torch.stack([query(x.mean((2, 3))) for query, x in zip(m.queries, t, strict=True)], 1)
    keys = torch.stack([key(x.mean((2, 3))) for key, x in zip(m.keys, s, strict=True)], 1).relu()
    keys = m.bilinear(keys.flatten(0, 1)).view(-1, len(s), len(t), 128)
    agreement = torch.einsum("nstd,ntd->nts", keys, queries) + m.teacher_positions @ m.student_positions.T
    s, t = ([x.square().mean(1, keepdim=True) for x in side] for side in (s, t))
    s = [torch.cat([F.adaptive_avg_pool2d(x, to.shape[2:]) for x in s], 1).flatten(2) for to in t]  # (N, S, P)
    errors = [F.normalize(a, dim=2) - F.normalize(b.flatten(2), dim=2) for a, b in zip(s, t, strict=True)]
    errors = torch.stack([x.square().mean(2) for x in errors], 1)
    return ((agreement / math.sqrt(128)).softmax(2) * errors).sum() / len(errors)


PLAIN = {
    "AFDLoss": Plain(plain_afd, STUDENTS, TEACHERS, build=lambda: losses.AFDLoss(*WIDTHS)),
}
