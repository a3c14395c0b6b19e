import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.losses.relation import rkd
from kd_lightning.losses.relation.rkd import RKDLoss, rkd_loss
from tests.losses.case import Case, other_implementation
from tests.losses.plain import ROWS, Plain, squared_distances

WRONG = [((6, 4), (5, 4)), ((1, 4), (1, 4)), ((0, 4), (0, 4)), ((6,), (6,)), ((6, 0), (6, 4))]
CASES = {
    "RKDLoss": Case(wrong=WRONG),
    "RKDLoss of maps": Case(RKDLoss, (6, 3, 4, 4), (6, 5, 2, 2), wrong=WRONG),
    "RKDLoss of distances": Case(lambda: RKDLoss(angle=0)),
    "RKDLoss of angles": Case(lambda: RKDLoss(distance=0)),
}


def rows(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def huber(x: float) -> float:
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def naive_distances(samples: list[list[float]]) -> list[float]:
    distances = [math.dist(a, b) for a in samples for b in samples]
    mean = sum(distances) / (len(samples) * (len(samples) - 1))
    return [distance / mean for distance in distances]


def naive_cosines(samples: list[list[float]]) -> list[float]:
    cosines = []
    for at in samples:
        for one in samples:
            for other in samples:
                lengths = math.dist(at, one) * math.dist(at, other)
                product = sum((a - o) * (b - o) for a, b, o in zip(one, other, at, strict=True))
                cosines.append(product / lengths if lengths else 0.0)
    return cosines


def naive(student: Tensor, teacher: Tensor, distance: float, angle: float) -> float:
    total = 0.0
    for weight, relation in ((distance, naive_distances), (angle, naive_cosines)):
        s, t = relation(student.flatten(1).tolist()), relation(teacher.flatten(1).tolist())
        total += weight * sum(huber(a - b) for a, b in zip(s, t, strict=True)) / len(s)
    return total


@pytest.mark.parametrize("weights", [(25.0, 50.0), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize(("student", "teacher"), [((7, 4), (7, 9)), ((3, 2, 3, 3), (3, 5)), ((2, 3), (2, 3))])
def test_value_is_that_of_naive_loops(student, teacher, weights):
    s, t = rows(*student, seed=1), rows(*teacher, seed=2)
    s[0] *= 9  # an outlier: the Huber loss turns linear
    assert RKDLoss(*weights)(s, t).item() == pytest.approx(naive(s, t, *weights), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("distance", "angle"), [(25.0, 50.0), (1.0, None), (None, 2.0)])
def test_torchdistill_agrees(distance, angle):
    there = other_implementation("torchdistill.losses.mid_level").RKDLoss("pool", "pool", distance, angle, "mean")
    there.dist_factor, there.angle_factor = distance or 0.0, angle or 0.0
    s, t = (rows(8, 5, seed=seed).float().requires_grad_() for seed in (1, 2))
    theirs = there({"pool": {"output": s}}, {"pool": {"output": t}})
    ours = rkd_loss(s, t, distance or 0.0, angle or 0.0)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    torch.testing.assert_close(*(torch.autograd.grad(loss, s)[0] for loss in (ours, theirs)), rtol=1e-4, atol=1e-5)


def test_it_is_invariant_to_scale_position_and_rotation():
    s, t = rows(6, 4, seed=1), rows(6, 4, seed=2)
    rotation, _ = torch.linalg.qr(rows(4, 4, seed=3))
    assert rkd_loss(5 * s @ rotation + 7, t).item() == pytest.approx(rkd_loss(s, t).item(), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coinciding_samples_have_no_gradient_and_do_not_change_that_of_others(dtype):
    s, t = rows(5, 4, seed=1).to(dtype), rows(5, 4, seed=2).to(dtype)
    s = s[[0, 1, 2, 3, 4, 4]].requires_grad_()
    (gradient,) = torch.autograd.grad(rkd_loss(s, t[[0, 1, 2, 3, 4, 0]]), s)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 100
    same = torch.ones(4, 3, dtype=dtype, requires_grad=True)
    loss = rkd_loss(same, t[:4])
    (gradient,) = torch.autograd.grad(loss, same)
    assert not gradient.any()
    of_teacher = zip((25.0, 50.0), (naive_distances(t[:4].tolist()), naive_cosines(t[:4].tolist())), strict=True)
    assert loss.item() == pytest.approx(sum(w * sum(map(huber, x)) / len(x) for w, x in of_teacher), rel=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_samples_that_differ_by_rounding_alone_coincide(scale):
    x, noise = rows(20, 4, seed=1), 1e-9 * rows(10, 4, seed=2)
    x[10:] = x[:10] + noise
    lengths = rkd._distances(scale * x)
    assert not lengths.diagonal(10).any()
    apart = torch.cdist(x[:10], x[:10]) + torch.eye(10)
    torch.testing.assert_close(lengths[:10, :10] + scale * torch.eye(10), scale * apart)
    x[10:] = x[:10] + 1e5 * noise  # and more than that is a distance
    assert rkd._distances(scale * x).diagonal(10).all()


def value_and_gradients(*sides: Tensor) -> tuple[Tensor, ...]:
    """Return the value of the angles alone, and the gradients of both sides."""
    sides = tuple(side.detach().requires_grad_() for side in sides)
    value = rkd_loss(*sides, distance=0.0, angle=50.0)
    return value.detach(), *torch.autograd.grad(value, sides)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("vertices", [1, 7, 20])
def test_angles_of_a_few_vertices_at_a_time_are_those_of_all(vertices, dtype, monkeypatch):
    s, t = rows(20, 4, seed=1).to(dtype), rows(20, 9, seed=2).to(dtype)
    s[3] = s[4]  # without a gradient
    expected = value_and_gradients(s, t)
    monkeypatch.setattr(rkd, "AT_ONCE", 400 * vertices)
    for found, whole in zip(value_and_gradients(s, t), expected, strict=True):
        assert (found - whole).norm() <= 1e-6 * whole.norm()


def test_second_derivatives_of_a_few_vertices_at_a_time_are_those_of_all(monkeypatch):
    s, t = rows(8, 3, seed=1).requires_grad_(), rows(8, 5, seed=2)
    expected = torch.autograd.functional.hessian(lambda x: rkd_loss(x, t), s)
    monkeypatch.setattr(rkd, "AT_ONCE", 64)
    torch.testing.assert_close(torch.autograd.functional.hessian(lambda x: rkd_loss(x, t), s), expected)


def test_a_large_batch_does_not_hold_all_angles():
    held: list[int] = []
    student, teacher = rows(160, 8, seed=1).float().requires_grad_(), rows(160, 8, seed=2).float()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (held.append(x.numel()), x)[1], lambda x: x):
        loss = rkd_loss(student, teacher)
    assert sum(held) < 160**3 / 4
    loss.backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("weights", [(0, 0), (-1, 1), (1, math.nan), (math.inf, 1)])
def test_invalid_weights_are_refused(weights):
    with pytest.raises(ValueError, match=f"distance={weights[0]} and angle={weights[1]} must be finite"):
        RKDLoss(*weights)


def plain_rkd(m, s, t, y):
    n, eye = len(s), torch.eye(len(s))
    s, t = squared_distances(s), squared_distances(t)
    lengths = [(x + eye).sqrt() for x in (s, t)]  # a root of zero has no gradient
    distances = [n * (n - 1) * (x - eye) / (x - eye).sum() for x in lengths]
    cosines = [
        (x.unsqueeze(1) + x.unsqueeze(2) - x) / (2 * length.unsqueeze(1) * length.unsqueeze(2))
        for x, length in zip((s, t), lengths, strict=True)
    ]  # of sides ji, jk and ik
    return 25 * F.smooth_l1_loss(*distances) + 50 * F.smooth_l1_loss(*cosines)


PLAIN = {
    "RKDLoss": Plain(plain_rkd, *ROWS),
}
