import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.losses.relation.irg import IRGLoss, irg_loss
from tests.losses.case import Case
from tests.losses.plain import STUDENTS, TEACHERS, N, Plain, squared_distances

STUDENT, TEACHER = [(6, 3, 4, 4), (6, 3, 2, 2), (6, 10)], [(6, 5, 4, 4), (6, 5, 3, 3), (6, 10)]
CASES = {
    "IRGLoss": Case(
        IRGLoss,
        STUDENT,
        TEACHER,
        kinked=True,  # which distance is the largest
        wrong=[
            (STUDENT, [(6, 5, 4, 4), (6, 10)]),
            ([(6, 4), (6, 10)], [(6, 4), (6, 9)]),
            ([(5, 4), (6, 10)], [(6, 4), (6, 10)]),
            ([(1, 4), (1, 10)], [(1, 4), (1, 10)]),
        ],
    ),
    "IRGLoss of one layer": Case(IRGLoss, [(6, 7), (6, 10)], [(6, 7), (6, 10)]),
}


def features(shapes: list[tuple[int, ...]], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def of_largest(values: list[float]) -> list[float]:
    return [value / max(values) for value in values]


def edges(layer: Tensor) -> list[float]:
    samples = layer.flatten(1).tolist()
    return of_largest([math.dist(a, b) ** 2 for a in samples for b in samples])


def moved(before: Tensor, after: Tensor) -> list[float]:
    means = [
        [[sum(map(sum, c)) / (len(c) * len(c[0])) for c in n] for n in layer.tolist()] for layer in (before, after)
    ]
    return of_largest([math.dist(a, b) ** 2 for a, b in zip(*means, strict=True)])


def mse(one: list[float], other: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) / len(one)


@pytest.mark.parametrize("weights", [(0.1, 5.0, 5.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_value_is_that_of_naive_loops(weights):
    s = features([(4, 3, 5, 5), (4, 3, 3, 2), (4, 3, 2, 2), (4, 6)], 1)
    t = features([(4, 7, 5, 5), (4, 7, 3, 3), (4, 7, 2, 2), (4, 6)], 2)
    nodes = mse(s[3].flatten().tolist(), t[3].flatten().tolist())
    of_edges = sum(mse(edges(s[k]), edges(t[k])) for k in range(3)) / 3
    of_moves = sum(mse(moved(s[k], s[k + 1]), moved(t[k], t[k + 1])) for k in range(2)) / 2
    expected = sum(w * x for w, x in zip(weights, (nodes, of_edges, of_moves), strict=True))
    assert IRGLoss(*weights)(s, t).item() == pytest.approx(expected, rel=1e-9)


def test_scale_and_position_affect_the_nodes_alone():
    s, t = features(STUDENT, 1), features(TEACHER, 2)
    moved = [3 * s[0] + 1, 3 * s[1] + 1, s[2]]
    assert irg_loss(moved, t).item() == pytest.approx(irg_loss(s, t).item(), rel=1e-9)


def test_coinciding_samples_have_neither_edges_nor_gradients():
    layer = torch.ones(3, 2, requires_grad=True)
    loss = irg_loss([layer, layer, torch.ones(3, 4)], features([(3, 2), (3, 2), (3, 4)], 1), nodes=0)
    (gradient,) = torch.autograd.grad(loss, layer)
    assert loss > 0.1
    assert not gradient.any()


def test_logits_alone_are_refused():
    with pytest.raises(ValueError, match="at least one layer and the logits: list two layers or more"):
        irg_loss([torch.zeros(4, 6)], [torch.zeros(4, 6)])


def test_layers_of_two_widths_are_refused_unless_transformations_is_0():
    s = features([(4, 3), (4, 5), (4, 6)], 1)
    with pytest.raises(ValueError, match="from 3 to 5 channels: list layers of one width"):
        irg_loss(s, s)
    assert irg_loss(s, s, transformations=0) == 0


@pytest.mark.parametrize("weights", [(-1, 1, 1), (1, math.nan, 1), (1, 1, math.inf)])
def test_invalid_weights_are_refused(weights):
    with pytest.raises(ValueError, match="must be finite numbers, at least 0"):
        IRGLoss(*weights)


def plain_irg(m, s, t, y):
    def edges(x):
        x = squared_distances(x.flatten(1))
        return x / x.max()

    def moved(before, after):
        x = (before - after).square().sum(1)
        return x / x.max()

    loss = 0.1 * F.mse_loss(s[3], t[3])
    loss = loss + 5 / 3 * sum(F.mse_loss(edges(s[i]), edges(t[i])) for i in range(3))
    s, t = ([x.mean((2, 3)) for x in side[:3]] for side in (s, t))
    return loss + 5 / 2 * sum(F.mse_loss(moved(s[i], s[i + 1]), moved(t[i], t[i + 1])) for i in range(2))


PLAIN = {
    "IRGLoss": Plain(plain_irg, [*STUDENTS, (N, 10)], [*TEACHERS, (N, 10)]),
}
