import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.losses import SADLoss, sad_loss
from tests.losses import naive
from tests.losses.case import Case
from tests.losses.plain import STUDENTS, Plain

CASES = {
    "SADLoss": Case(student=(6, 3, 4, 4), teacher=(6, 5, 2, 2), wrong=[((6, 3), (6, 3)), ((6, 3, 1, 1), (6, 3, 4, 4))])
}


def maps(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def bilinear(grid: list[list[float]], height: int, width: int) -> list[list[float]]:
    """Bilinear interpolation with pixel centres at half-integers, and with the border repeated."""

    def neighbours(place: int, size: int, of: int) -> tuple[int, int, float]:
        at = min(max((place + 0.5) * size / of - 0.5, 0), size - 1)
        return int(at), min(int(at) + 1, size - 1), at - int(at)

    result = []
    for i in range(height):
        top, bottom, down = neighbours(i, len(grid), height)
        row = []
        for j in range(width):
            left, right, along = neighbours(j, len(grid[0]), width)
            upper = (1 - along) * grid[top][left] + along * grid[top][right]
            lower = (1 - along) * grid[bottom][left] + along * grid[bottom][right]
            row.append((1 - down) * upper + down * lower)
        result.append(row)
    return result


def attention(channels: list[list[list[float]]], height: int, width: int) -> list[float]:
    """Square, sum over channels, resize, softmax over all positions."""
    rows, columns = len(channels[0]), len(channels[0][0])
    sums = [[sum(channel[i][j] ** 2 for channel in channels) for j in range(columns)] for i in range(rows)]
    return naive.softmax([value for row in bilinear(sums, height, width) for value in row])


def naive_sad(student: Tensor, teacher: Tensor) -> float:
    total = 0.0
    for s, t in naive.pairs(student, teacher):
        pair = zip(attention(s, *student.shape[2:]), attention(t, *student.shape[2:]), strict=True)
        total += sum((a - b) ** 2 for a, b in pair)
    return total / len(student)


SHAPES = [
    ((3, 4, 5, 5), (3, 4, 5, 5)),
    ((2, 3, 6, 4), (2, 7, 3, 2)),
    ((2, 3, 3, 2), (2, 5, 7, 5)),
    ((1, 2, 13, 13), (1, 3, 6, 6)),
    ((2, 2, 4, 4), (2, 1, 1, 1)),
]


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
@pytest.mark.parametrize(("student", "teacher"), SHAPES)
def test_value_is_that_of_naive_loops(student, teacher, scale):
    s, t = maps(*student, seed=1, scale=scale), maps(*teacher, seed=2, scale=scale)
    assert SADLoss()(s, t).item() == pytest.approx(naive_sad(s, t), rel=1e-9)
    assert naive_sad(s, t) > 1e-4


@pytest.mark.parametrize(("student", "teacher"), SHAPES)
def test_the_gradients_are_those_of_the_value(student, teacher):
    s, t = maps(*student, seed=1).requires_grad_(), maps(*teacher, seed=2).requires_grad_()
    torch.autograd.gradcheck(sad_loss, (s, t))


def test_it_is_zero_for_equal_attention_of_different_features():
    student = maps(2, 6, 4, 4)
    teacher = student.flip(1) * torch.tensor([1.0, -1.0]).repeat(3).view(1, 6, 1, 1)  # other channels, other signs
    assert sad_loss(student, teacher).item() == pytest.approx(0, abs=1e-20)


def test_the_sum_of_squares_sharpens_the_map():
    student, one = torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.0, 1.0]]]])
    for channels in (1, 4):
        p = 1 / (1 + math.exp(-channels))
        loss = sad_loss(student, one.expand(1, channels, 1, 2)).item()
        assert loss == pytest.approx(2 * (p - 0.5) ** 2, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e2, 1e4])
def test_it_is_finite_in_every_precision(dtype, scale):
    student = maps(2, 4, 5, 5, seed=1, scale=scale / 4).to(dtype).requires_grad_()
    teacher = maps(2, 8, 3, 3, seed=2, scale=scale / 4).to(dtype)
    loss = sad_loss(student, teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()
    assert loss.item() == pytest.approx(naive_sad(student.detach(), teacher), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((2, 3), (2, 3)), ((2, 3, 4, 4), (2, 3)), ((2, 3, 4, 4), (3, 3, 4, 4)), ((0, 3, 4, 4), (0, 3, 4, 4))],
)
def test_inputs_other_than_maps_are_refused_with_both_shapes_and_the_remedy(student, teacher):
    with pytest.raises(ValueError, match="address convolutional layers") as refusal:
        sad_loss(torch.zeros(student), torch.zeros(teacher))
    assert f"student features {student} and teacher features {teacher}" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_map_of_one_position_is_refused():
    with pytest.raises(ValueError, match=r"student features \(2, 3, 1, 1\) have a single position"):
        sad_loss(torch.zeros(2, 3, 1, 1), torch.zeros(2, 3, 4, 4))


def plain_sad(m, s, t, y):
    t = F.interpolate(t.square().sum(1, keepdim=True), s.shape[2:], mode="bilinear")
    return F.mse_loss(s.square().sum(1).flatten(1).softmax(1), t.flatten(1).softmax(1), reduction="sum") / len(s)


PLAIN = {
    "SADLoss": Plain(plain_sad, STUDENTS[1], STUDENTS[2]),
}
