import math

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


def normalised(x: torch.Tensor) -> torch.Tensor:
    """What a BatchNorm makes of maps before it has learned anything."""
    mean, variance = x.mean(dim=(0, 2, 3), keepdim=True), x.var(dim=(0, 2, 3), keepdim=True, correction=0)
    return (x - mean) / (variance + 1e-5).sqrt()


def nearest(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    rows = [i * x.shape[2] // height for i in range(height)]
    columns = [i * x.shape[3] // width for i in range(width)]
    return x[:, :, rows][:, :, :, columns]


def naive_review(loss: ReviewKDLoss, students: list[torch.Tensor], teachers: list[torch.Tensor]) -> list[torch.Tensor]:
    """The maps that are compared with the teacher's: the paper's figure 3, from the deepest layer to the shallowest."""
    made, deeper = [], None
    for fusion, s, t in zip([*loss.fusions][::-1], students[::-1], teachers[::-1], strict=True):
        own = normalised(torch.einsum("nchw,dc->ndhw", s, fusion.narrow[0].weight[:, :, 0, 0]))
        if deeper is not None:
            deeper = nearest(deeper, *own.shape[2:])
            both = torch.cat([own, deeper], dim=1)
            weight, bias = fusion.attention[0].weight[:, :, 0, 0], fusion.attention[0].bias
            maps = 1 / (1 + (-torch.einsum("nchw,dc->ndhw", both, weight) - bias[:, None, None]).exp())
            own = own * maps[:, 0].unsqueeze(1) + deeper * maps[:, 1].unsqueeze(1)
        deeper = nearest(own, *t.shape[2:])
        windows = F.unfold(deeper, 3, padding=1).unflatten(1, (-1, 9))  # each pixel with its eight neighbours
        wide = torch.einsum("nckp,dck->ndp", windows, fusion.widen[0].weight.flatten(2))
        made.insert(0, normalised(wide.unflatten(2, t.shape[2:])))
    return made


@pytest.mark.parametrize(
    ("sizes", "teachers_sizes"),
    [([(6, 6), (3, 3), (2, 2)], [(6, 6), (3, 3), (2, 2)]), ([(5, 7), (4, 3), (2, 3)], [(6, 4), (2, 5), (3, 2)])],
    ids=["square", "unlike"],
)
def test_maps_are_fused_as_in_the_paper_written_out(sizes, teachers_sizes):
    loss = build().double()
    students = [maps(6, channels, *size, seed=1) for channels, size in zip([3, 2, 4], sizes, strict=True)]
    teachers = [maps(6, channels, *size, seed=2) for channels, size in zip([5, 4, 3], teachers_sizes, strict=True)]
    made = naive_review(loss, students, teachers)
    torch.testing.assert_close(loss(students, teachers), review_kd_loss(made, teachers), rtol=1e-9, atol=0)
    learned = [p for p in loss.parameters() if p.dim() > 1]
    for found, wanted in zip(
        torch.autograd.grad(loss(students, teachers), learned),
        torch.autograd.grad(review_kd_loss(made, teachers), learned),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-12)


def test_convolutions_start_as_the_published_ones():
    """Uniform with a = 1: up to the root of 3 / fan-in, in place of torch's root of 1 / fan-in."""
    torch.manual_seed(0)
    fusion = ReviewKDLoss([64, 32], [64, 64], channels=64).fusions[0]
    for convolution in (fusion.narrow[0], fusion.widen[0]):
        fan_in = convolution.weight[0].numel()
        assert convolution.weight.abs().max().item() == pytest.approx(math.sqrt(3 / fan_in), rel=0.01)


def test_levels_of_unlike_maps_are_those_below_the_shorter_side():
    student, teacher = maps(3, 4, 3, 8, seed=1), maps(3, 4, 3, 8, seed=2)
    difference = student - teacher
    cells = [difference]  # 3 x 8, then 2 x 2 and 1 x 1, of overlapping rows where 3 is not divisible
    halves = [
        difference[:, :, rows, columns].mean(dim=(2, 3))
        for rows in (slice(0, 2), slice(1, 3))
        for columns in (slice(0, 4), slice(4, 8))
    ]
    cells += [torch.stack(halves), difference.mean(dim=(2, 3))]
    wanted = sum(part.square().mean() / 2**i for i, part in enumerate(cells)) / 1.75
    torch.testing.assert_close(review_kd_loss(student, teacher), wanted)


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
