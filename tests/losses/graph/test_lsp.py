from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kd_lightning import losses
from kd_lightning.losses import LSPLoss, lsp_loss
from tests.losses.case import Case
from tests.losses.plain import ROWS, N, Plain


def edges() -> Tensor:
    """Edges between six nodes; none leads to the last."""
    return torch.tensor([[0, 2, 3, 1, 4, 0, 5, 2], [1, 1, 1, 0, 0, 2, 3, 4]])


CASES = {
    "LSPLoss": Case(
        student=(6, 4),
        teacher=(6, 4),
        target=edges,
        samples=False,  # nodes, of which an edge joins two
        wrong=[((6, 4), (5, 4)), ((6,), (6, 4)), ((6, 4), (6, 4, 1))],
    )
}


def naive(student: Tensor, teacher: Tensor, edges: list[tuple[int, int]], sigma: float | None) -> float:
    def scale(x: list[list[float]]) -> float:
        return 2 * sigma if sigma else sum(math.dist(x[i], x[j]) ** 2 for i, j in edges) / len(edges)

    def structure(x: list[list[float]], i: int) -> list[float]:
        kernels = [math.exp(-(math.dist(x[i], x[j]) ** 2) / scale(x)) for j, k in edges if k == i]
        return [math.exp(k) / sum(map(math.exp, kernels)) for k in kernels]

    s, t = student.tolist(), teacher.tolist()
    total = 0.0
    for i in range(len(s)):
        total += sum(p * math.log(p / q) for p, q in zip(structure(s, i), structure(t, i), strict=True))
    return total / len(s)


@pytest.mark.parametrize("sigma", [0.5, 10.0, 100.0, None])
@pytest.mark.parametrize("width", [4, 7])
def test_value_is_that_of_naive_loops(sigma: float | None, width: int):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    teacher = torch.randn(6, width, generator=generator, dtype=torch.float64)
    expected = naive(student, teacher, [tuple(edge) for edge in edges().T.tolist()], sigma)
    assert expected > 0
    assert lsp_loss(student, teacher, edges(), sigma).item() == pytest.approx(expected, rel=1e-9)
    assert LSPLoss(sigma)(student, teacher, edges()).item() == pytest.approx(expected, rel=1e-9)


def test_it_depends_on_distances_and_not_on_positions():
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))
    assert lsp_loss(teacher @ rotation + 3, teacher, edges()).item() == pytest.approx(0, abs=1e-12)
    assert lsp_loss(2 * teacher, teacher, edges(), sigma=10.0) > 1e-3
    assert lsp_loss(2 * teacher, teacher, edges()).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_it_has_a_gradient_whatever_the_scale_and_width_of_the_layers(scale: float):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(N, 512, generator=generator)
    teacher = student[:, :256] + torch.randn(N, 256, generator=generator)
    values = []
    for factor in (1.0, scale):
        given = (factor * student).requires_grad_()
        loss = lsp_loss(given, teacher, plain_edges())
        (gradient,) = torch.autograd.grad(loss, given)
        values.append((loss.item(), (factor * gradient).norm().item()))
    assert values[0] == pytest.approx(values[1], rel=1e-3)
    assert values[0][0] > 1e-5
    assert abs(lsp_loss(student, teacher, plain_edges(), sigma=10.0)) < 1e-6


def test_nodes_that_coincide_are_equally_similar():
    same = torch.ones(6, 4, requires_grad=True)
    teacher = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    loss = lsp_loss(same, teacher, edges())
    assert loss > 0
    assert not torch.autograd.grad(loss, same)[0].any()


def test_invalid_inputs_are_refused():
    x = torch.zeros(6, 4)
    for wrong in (torch.zeros(6, dtype=torch.int64), torch.zeros(3, 2, dtype=torch.int64), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match=r"must be int64 \(2, E\): set the term's target"):
            lsp_loss(x, x, wrong)
    with pytest.raises(ValueError, match="sigma=0 must be a finite number above 0"):
        LSPLoss(0)


def plain_lsp(m, s, t, y):
    source, target = y

    def shares(x):
        likeness = (-(x[source] - x[target]).square().sum(1) / (2 * m.sigma)).exp()
        sums = torch.zeros(len(x), dtype=x.dtype).index_add(0, target, likeness.exp())
        return likeness - sums[target].log()

    mine, theirs = shares(s), shares(t)
    return (mine.exp() * (mine - theirs)).sum() / len(s)


def plain_edges() -> Tensor:
    """A graph of the 64 samples: each is joined to the ten after it."""
    source = torch.arange(N).repeat_interleave(10)
    return torch.stack((source, (source + torch.arange(10).repeat(N) + 1) % N))


PLAIN = {
    "LSPLoss": Plain(plain_lsp, *ROWS, build=lambda: losses.LSPLoss(sigma=1000.0), target=plain_edges),
}
