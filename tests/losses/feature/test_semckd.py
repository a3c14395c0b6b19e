import math

import pytest
import torch
from torch import nn
from torch.nn import functional, functional as F

from kd_lightning import losses
from kd_lightning.losses import SemCKDLoss, semckd_loss
from tests.losses.case import Case
from tests.losses.plain import STUDENTS, TEACHERS, N, Plain


def build(**given) -> SemCKDLoss:
    torch.manual_seed(0)
    return SemCKDLoss([3, 2], [5, 4, 3], batch_size=12, **given)  # batches of six: half as many


STUDENT, TEACHER = [(6, 3, 4, 4), (6, 2, 3, 3)], [(6, 5, 5, 5), (6, 4, 3, 3), (6, 3, 2, 2)]
CASES = {
    "SemCKDLoss": Case(
        build,
        student=STUDENT,
        teacher=TEACHER,
        minimum="elsewhere",
        kinked=True,
        limits={torch.float16: 30.0},  # a teacher's 1e4 and a student's 1e-3 give gradients beyond its range
        wrong=[(STUDENT, [*TEACHER[:2], (5, 3, 2, 2)]), ([STUDENT[0], (6, 2)], TEACHER)],
    )
}


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def example() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return [maps(*shape, seed=1) for shape in STUDENT], [maps(*shape, seed=2) for shape in TEACHER]


def naive_embedding(features: torch.Tensor, embedding: nn.Sequential) -> list[list[float]]:
    """For each sample: inner products with the batch, padded to twelve, two layers with ReLU, a unit vector."""
    rows = features.flatten(1).tolist()
    first, second = embedding[0], embedding[2]
    found = []
    for row in rows:
        x = [sum(a * b for a, b in zip(row, other, strict=True)) for other in rows] + [0.0] * (12 - len(rows))
        for layer, act in ((first, lambda value: max(value, 0.0)), (second, lambda value: value)):
            parameters = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
            x = [act(b + sum(w * v for w, v in zip(weights, x, strict=True))) for weights, b in parameters]
        length = math.sqrt(sum(value**2 for value in x))
        found.append([value / length for value in x])
    return found


def naive_attention(loss: SemCKDLoss, student: list[torch.Tensor], teacher: list[torch.Tensor]) -> torch.Tensor:
    queries = [naive_embedding(s, q) for s, q in zip(student, loss.queries, strict=True)]
    keys = [naive_embedding(t, k) for t, k in zip(teacher, loss.keys, strict=True)]
    energy = [
        [[math.exp(sum(a * b for a, b in zip(q[n], k[n], strict=True))) for k in keys] for q in queries]
        for n in range(6)
    ]
    found = torch.tensor(energy, dtype=torch.float64)
    return found / found.sum(dim=2, keepdim=True)


def naive_semckd(loss: SemCKDLoss, student: list[torch.Tensor], teacher: list[torch.Tensor]) -> float:
    attention, total = naive_attention(loss, student, teacher), 0.0
    for i, s in enumerate(student):
        for j, t in enumerate(teacher):
            size = min(s.shape[2], t.shape[2])
            x, wanted = functional.adaptive_avg_pool2d(s, size), functional.adaptive_avg_pool2d(t, size)
            layers = [layer for layer in loss.projections[i][j] if isinstance(layer, nn.Conv2d)]
            for layer, padding in zip(layers, (0, 1, 0), strict=True):
                x = functional.conv2d(x, layer.weight, padding=padding)
                if layer is not layers[-1]:
                    mean, variance = (
                        x.mean(dim=(0, 2, 3), keepdim=True),
                        x.var(dim=(0, 2, 3), keepdim=True, correction=0),
                    )
                    x = ((x - mean) / (variance + 1e-5).sqrt()).clamp(min=0)
            errors = (x - wanted).square().flatten(1).mean(dim=1)
            total += sum(attention[n, i, j].item() * errors[n].item() for n in range(6))
    return total / 6 / len(student)


def test_value_is_that_of_the_paper_written_out():
    loss, (student, teacher) = build().double(), example()
    attention = loss.attention(student, teacher)
    torch.testing.assert_close(attention, naive_attention(loss, student, teacher), rtol=1e-9, atol=0)
    assert attention.std(dim=2).min() > 1e-3  # it prefers some layers
    assert loss(student, teacher).item() == pytest.approx(naive_semckd(loss, student, teacher), rel=1e-9)


def test_a_single_layer_of_the_student_attends_to_all_of_the_teachers():
    torch.manual_seed(0)
    loss, (student, teacher) = SemCKDLoss([3], [5, 4, 3], batch_size=12).double(), example()
    expected = naive_semckd(loss, student[:1], teacher)
    assert loss(student[:1], teacher).item() == pytest.approx(expected, rel=1e-9)
    assert loss(student[0], teacher).item() == pytest.approx(expected, rel=1e-9)


def test_the_gradient_is_that_of_the_value():
    loss, (student, teacher) = build(channels=2).double(), example()
    inputs = [layer.requires_grad_() for layer in [*student, *teacher]]
    torch.autograd.gradcheck(lambda *layers: loss([*layers[:2]], [*layers[2:]]), inputs, fast_mode=True)


def test_each_sample_has_its_own_attention():
    student = [[torch.zeros(2, 2), torch.zeros(2, 2)]]
    teacher = [[torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.tensor([[3.0, 3.0], [4.0, 4.0]])]]
    attention = torch.tensor([[[1.0, 0.0]], [[0.25, 0.75]]])
    assert semckd_loss(student, teacher, attention).item() == pytest.approx((1 + 0.25 * 4 + 0.75 * 16) / 2)


def test_the_attention_is_finite_beyond_the_range_of_half_precision():
    loss, (student, teacher) = build(), example()
    student, teacher = ([500 * layer.float() for layer in side] for side in (student, teacher))
    plain = loss.attention(student, teacher)
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(loss.attention(student, teacher), plain)


def test_rows_of_a_smaller_batch_are_padded_with_zeros():
    loss, (student, teacher) = build().double(), example()
    few = [[layer[:4] for layer in side] for side in (student, teacher)]
    silent = [[torch.cat([layer[:4], 0 * layer[4:]]) for layer in side] for side in (student, teacher)]
    torch.testing.assert_close(loss.attention(*few), loss.attention(*silent)[:4])
    assert loss(*few).isfinite()


def test_a_batch_may_be_as_large_as_the_loss_was_built_for():
    torch.manual_seed(0)
    loss, (student, teacher) = SemCKDLoss([3, 2], [5, 4, 3], batch_size=6).double(), example()
    assert loss(student, teacher).isfinite()
    assert SemCKDLoss([3], [5], batch_size=3).queries[0][2].out_features == 1  # at least one


def test_the_projection_is_twice_as_wide_as_the_teacher_by_default():
    assert build().projections[1][0][0].weight.shape == (10, 2, 1, 1)
    assert build(channels=7).projections[0][2][3].weight.shape == (7, 7, 3, 3)
    assert build().queries[0][0].weight.shape == (6, 12)  # a quarter of the batch, and twice that inside


def test_invalid_arguments_and_inputs_are_refused():
    student, teacher = example()
    with pytest.raises(
        ValueError, match="1 layers of the student and 3 of the teacher, but the loss was built for 2 and 3"
    ):
        build()(student[:1], teacher)
    with pytest.raises(ValueError, match=r"\(18, 3, 4, 4\) exceed batch_size=12: set it"):
        build()([s.repeat(3, 1, 1, 1) for s in student], [t.repeat(3, 1, 1, 1) for t in teacher])
    with pytest.raises(ValueError, match="must name a width"):
        SemCKDLoss([], [3], batch_size=6)
    with pytest.raises(ValueError, match=r"attention \(2, 2, 1\) does not fit errors \(2, 1, 1\)"):
        semckd_loss([[torch.zeros(2, 2)]], [[torch.zeros(2, 2)]], torch.zeros(2, 2, 1))


def plain_semckd(m, s, t, y):
    queries, keys = (
        torch.stack([F.normalize(layer(x @ x.T)) for layer, x in zip(layers, side, strict=True)], 1)
        for layers, side in ((m.queries, [x.flatten(1) for x in s]), (m.keys, [x.flatten(1) for x in t]))
    )
    attention = (queries @ keys.mT).softmax(2)
    loss = 0
    for i, (x, projections) in enumerate(zip(s, m.projections, strict=True)):
        for j, (to, projection) in enumerate(zip(t, projections, strict=True)):
            size = [min(x.shape[2], to.shape[2])] * 2
            a, b = (side if [*side.shape[2:]] == size else F.adaptive_avg_pool2d(side, size) for side in (x, to))
            loss = loss + attention[:, i, j] @ F.mse_loss(projection(a), b, reduction="none").mean((1, 2, 3))
    return loss / attention[:, :, 0].numel()


PLAIN = {
    "SemCKDLoss": Plain(
        plain_semckd, STUDENTS[1:], TEACHERS[1:], build=lambda: losses.SemCKDLoss([32] * 2, [128] * 2, N, channels=64)
    ),
}
