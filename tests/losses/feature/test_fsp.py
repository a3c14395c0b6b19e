import pytest
import torch
from torch.nn import functional as F

from kd_lightning.losses import FSPLoss, fsp_loss
from tests.losses.case import Case, other_implementation
from tests.losses.plain import STUDENTS, Plain

CASES = {
    "FSPLoss": Case(
        student=[(6, 3, 4, 4), (6, 2, 4, 4)],
        teacher=[(6, 3, 4, 4), (6, 2, 4, 4)],
        limits={torch.float16: 30.0},  # the gradient grows with the third power
        wrong=[
            ([(6, 3, 4, 4), (6, 2, 4, 4)], [(6, 3, 4, 4), (6, 4, 4, 4)]),
            ([(6, 3, 4, 4), (6, 2, 4, 4)], [(6, 3, 4, 4), (5, 2, 4, 4)]),
            ([(6, 3, 4, 4), (6, 2)], [(6, 3, 4, 4), (6, 2)]),
        ],
    ),
    "FSPLoss of three layers": Case(
        FSPLoss,
        student=[(6, 3, 5, 5), (6, 2, 4, 4), (6, 4, 2, 2)],
        teacher=[(6, 3, 4, 4), (6, 2, 4, 4), (6, 4, 3, 3)],
        kinked=True,
        limits={torch.float16: 30.0},
    ),
}


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flow(one: list, other: list) -> list[float]:
    """Inner products of all pairs of channels, over the number of positions."""
    positions = [(i, j) for i in range(len(one[0])) for j in range(len(one[0][0]))]
    return [sum(a[i][j] * b[i][j] for i, j in positions) / len(positions) for a in one for b in other]


def naive_fsp(student: list[torch.Tensor], teacher: list[torch.Tensor]) -> float:
    total = 0.0
    for first in range(len(student) - 1):
        samples = zip(*(side[first + i].tolist() for side in (student, teacher) for i in (0, 1)), strict=True)
        errors = [
            (a - b) ** 2
            for s, s_next, t, t_next in samples
            for a, b in zip(flow(s, s_next), flow(t, t_next), strict=True)
        ]
        total += sum(errors) / len(errors)
    return total


def test_value_and_gradient_are_those_of_naive_loops_summed_over_successive_pairs():
    student, teacher = ([maps(2, c, 3, 2, seed=seed + c) for c in (3, 2, 4)] for seed in (0, 10))
    assert fsp_loss(student, teacher).item() == pytest.approx(naive_fsp(student, teacher), rel=1e-9)
    assert naive_fsp(student[:2], teacher[:2]) < naive_fsp(student, teacher)
    inputs = [layer.requires_grad_() for layer in student]
    torch.autograd.gradcheck(lambda *layers: fsp_loss([*layers], teacher), inputs)


def test_the_larger_of_two_layers_is_max_pooled_on_each_side_separately():
    large, small = [maps(2, 3, 6, 4, seed=seed) for seed in (1, 2)], [maps(2, 2, 3, 2, seed=seed) for seed in (3, 4)]
    pooled = [side.unflatten(2, (3, 2)).unflatten(4, (2, 2)).amax(dim=(3, 5)) for side in large]
    wanted = naive_fsp([pooled[0], small[0]], [pooled[1], small[1]])
    assert fsp_loss([large[0], small[0]], [large[1], small[1]]).item() == pytest.approx(wanted, rel=1e-9)
    assert fsp_loss([small[0], large[0]], [small[1], large[1]]).item() == pytest.approx(wanted, rel=1e-9)


def test_the_two_sides_can_have_different_sizes():
    student, teacher = [maps(2, 3, 2, 2), maps(2, 2, 2, 2)], [maps(2, 3, 2, 2), maps(2, 2, 2, 2)]
    larger = [layer.repeat(1, 1, 2, 2) for layer in teacher]  # the same mean over positions
    assert fsp_loss(student, larger).item() == pytest.approx(naive_fsp(student, teacher), abs=1e-15)


def test_torchdistill_sums_the_norms_of_the_matrices_columns():
    first, second = {"path": "1", "io": "output"}, {"path": "2", "io": "output"}
    sides = ("student", "teacher")
    pair = {f"{side}_first": first for side in sides} | {f"{side}_second": second for side in sides}
    layers = [[maps(1, c, 5 - i, 5 - i, seed=seed + c).float() for i, c in enumerate((1, 3))] for seed in (0, 10)]
    seen = [{"1": {"output": one}, "2": {"output": two}} for one, two in layers]
    theirs = other_implementation("torchdistill.losses.mid_level").FSPLoss({"pair": pair})(*seen)
    # with one channel in the first layer the columns have one value each: their sum is that of absolute differences
    (s, s_next), (t, t_next) = layers
    pool = torch.nn.AdaptiveMaxPool2d(4)
    difference = (pool(s) * s_next).mean(dim=(2, 3)) - (pool(t) * t_next).mean(dim=(2, 3))
    assert theirs.item() == pytest.approx(difference.abs().sum().item(), rel=1e-5)
    assert fsp_loss(*layers).item() == pytest.approx(difference.square().mean().item(), rel=1e-5)


def test_a_single_layer_is_refused():
    with pytest.raises(ValueError, match="FSP compares successive layers, and 1 is given"):
        FSPLoss()([maps(2, 3, 2, 2)], [maps(2, 3, 2, 2)])


def test_different_widths_are_refused():
    with pytest.raises(ValueError, match="FSP has no connector, so use a student as wide as its teacher"):
        FSPLoss()([maps(2, 3, 2, 2)] * 2, [maps(2, 4, 2, 2)] * 2)


def plain_fsp(m, s, t, y):
    first, second = (
        [F.adaptive_max_pool2d(x[i], x[i + 1].shape[2:]).flatten(2) @ x[i + 1].flatten(2).mT for x in (s, t)]
        for i in (0, 1)
    )
    return F.mse_loss(*first) / s[1][0, 0].numel() ** 2 + F.mse_loss(*second) / s[2][0, 0].numel() ** 2


PLAIN = {
    "FSPLoss": Plain(plain_fsp, STUDENTS, STUDENTS),
}
