import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kd_lightning import losses
from kd_lightning.losses import ReviewKDLoss, review_kd_loss
from tests.losses.case import Case, other_implementation
from tests.losses.plain import STUDENTS, TEACHERS, WIDTHS, Plain


def build() -> ReviewKDLoss:
    torch.manual_seed(0)
    return ReviewKDLoss([3, 2, 4], [5, 4, 3])


STUDENT = [(6, 3, 6, 6), (6, 2, 3, 3), (6, 4, 2, 2)]
TEACHER = [(6, 5, 6, 6), (6, 4, 3, 3), (6, 3, 2, 2)]
CASES = {
    "ReviewKDLoss": Case(
        build,
        student=STUDENT,
        teacher=TEACHER,
        minimum="elsewhere",
        kinked=True,  # one BatchNorm behind another magnifies the rounding of features that do not vary
        limits={torch.float16: 30.0},  # a teacher's 1e4 and a student's 1e-3 give gradients beyond its range
        wrong=[
            (STUDENT, [*TEACHER[:2], (5, 3, 2, 2)]),
            ([*STUDENT[:2], (6, 4)], [*TEACHER[:2], (6, 3)]),
        ],
    ),
    "ReviewKDLoss of unlike sizes": Case(
        build,
        student=[(6, 3, 5, 5), (6, 2, 4, 4), (6, 4, 2, 2)],
        teacher=[(6, 5, 6, 6), (6, 4, 2, 2), (6, 3, 3, 3)],
        minimum="elsewhere",
        kinked=True,
        limits={torch.float16: 30.0},
    ),
}


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_hcl(student: torch.Tensor, teacher: torch.Tensor) -> float:
    """Mean square of the cell means of the difference; pooling is linear."""
    difference, size = student - teacher, student.shape[2]
    total, weights = difference.square().mean().item(), 1.0
    used = [level for level in (4, 2, 1) if level < size]
    for i, level in enumerate(used):
        bounds = [(k * size // level, -(-(k + 1) * size // level)) for k in range(level)]
        cells = [
            difference[:, :, a:b, c:d].mean(dim=(2, 3)).square().mean().item() for a, b in bounds for c, d in bounds
        ]
        total += 0.5 ** (i + 1) * sum(cells) / len(cells)
        weights += 0.5 ** (i + 1)
    return total / weights


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
def test_value_is_that_of_naive_loops_and_of_torchdistill(size):
    student, teacher = maps(3, 4, size, size, seed=1), maps(3, 4, size, size, seed=2)
    assert review_kd_loss(student, teacher).item() == pytest.approx(naive_hcl(student, teacher), rel=1e-12)
    torch.autograd.gradcheck(review_kd_loss, (student.requires_grad_(), teacher))
    theirs = other_implementation("torchdistill.losses.mid_level").HierarchicalContextLoss("1", "output", "1", "output")
    found = theirs({"1": {"output": (student, None)}}, {"1": {"output": teacher}})
    assert review_kd_loss(student, teacher).item() == pytest.approx(found.item(), rel=1e-5)


def test_layers_are_summed():
    students, teachers = ([maps(3, 4, s, s, seed=seed + s) for s in (6, 3)] for seed in (0, 10))
    wanted = sum(naive_hcl(s, t) for s, t in zip(students, teachers, strict=True))
    assert review_kd_loss(students, teachers).item() == pytest.approx(wanted, rel=1e-12)


def test_the_fusion_equals_torchdistill():
    module = other_implementation("torchdistill.models.wrapper")
    loss = build()
    theirs = [
        module.AttentionBasedFusion(s, 4, t, i < 2) for i, (s, t) in enumerate(zip([3, 2, 4], [5, 4, 3], strict=True))
    ]
    for ours, other in zip(loss.fusions, theirs, strict=True):
        other.conv1.load_state_dict(ours.narrow.state_dict())
        other.conv2.load_state_dict(ours.widen.state_dict())
        if other.attention_conv is not None:
            other.attention_conv.load_state_dict(ours.attention.state_dict())
    students, teachers = (
        [maps(*shape, seed=1).float() for shape in STUDENT],
        [maps(*shape, seed=2).float() for shape in TEACHER],
    )
    reviewed, residual = [], None
    for fusion, features in zip(theirs[::-1], students[::-1], strict=True):
        made, residual = fusion(features, residual, features.shape[-1])
        reviewed.insert(0, made)
    wanted = sum(naive_hcl(made, t) for made, t in zip(reviewed, teachers, strict=True))
    assert loss(students, teachers).item() == pytest.approx(wanted, rel=1e-5)


def test_a_shallow_layer_learns_from_the_teacher_through_the_deeper_ones_and_not_the_other_way():
    loss = build().double()
    students = [maps(*shape, seed=1).requires_grad_() for shape in STUDENT]
    made, deeper = loss.fusions[2](students[2], None, torch.Size((2, 2)))
    deep = torch.autograd.grad(made.square().sum(), students, retain_graph=True, allow_unused=True)
    made, _ = loss.fusions[1](students[1], deeper, torch.Size((3, 3)))
    middle = torch.autograd.grad(made.square().sum(), students, allow_unused=True)
    assert [gradient is not None for gradient in deep] == [False, False, True]
    assert [gradient is not None for gradient in middle] == [False, True, True]


def test_maps_are_resized_to_the_teachers_by_the_nearest_neighbour():
    loss = ReviewKDLoss([2], [3]).double()
    student, teacher = maps(4, 2, 2, 2, seed=1), maps(4, 3, 4, 4, seed=2)
    large = student.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(loss(student, teacher), loss(large, teacher))


def test_the_common_width_is_the_deepest_layers_up_to_512():
    assert build().fusions[0].narrow[0].out_channels == 4
    assert ReviewKDLoss([8, 600], [8, 8]).fusions[0].narrow[0].out_channels == 512
    assert ReviewKDLoss([8, 600], [8, 8], channels=7).fusions[1].narrow[0].out_channels == 7
    assert isinstance(build().fusions[0].attention[1], nn.Sigmoid)


def test_invalid_arguments_and_inputs_are_refused():
    with pytest.raises(ValueError, match="must name a width for every layer, and be of the same length"):
        ReviewKDLoss([3, 4], [3])
    with pytest.raises(ValueError, match="1 layers of the student and 1 of the teacher, but the loss was built for 3"):
        build()(maps(6, 3, 4, 4), maps(6, 5, 4, 4))
    with pytest.raises(ValueError, match=r"\(3, 4, 2, 2\) must have the same shape"):
        review_kd_loss(maps(3, 4, 3, 3), maps(3, 4, 2, 2))


def plain_review_kd(m, s, t, y):
    loss, deeper = 0, None
    for fusion, x, to in zip(reversed(m.fusions), s[::-1], t[::-1], strict=True):
        x = fusion.narrow(x)
        if deeper is not None:
            deeper = F.interpolate(deeper, x.shape[2:])
            attention = fusion.attention(torch.cat([x, deeper], 1))
            x = x * attention[:, :1] + deeper * attention[:, 1:]
        wide, deeper = fusion.widen(x), x
        pooled = [(wide, to), *([F.adaptive_avg_pool2d(side, size) for side in (wide, to)] for size in (4, 2, 1))]
        loss = loss + sum(F.mse_loss(*sides) / 2**i for i, sides in enumerate(pooled)) / 1.875
    return loss


PLAIN = {
    "ReviewKDLoss": Plain(plain_review_kd, STUDENTS, TEACHERS, build=lambda: losses.ReviewKDLoss(*WIDTHS)),
}
