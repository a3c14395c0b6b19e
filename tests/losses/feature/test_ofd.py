import math

import pytest
import torch
from torch.nn import functional as F

from kd_lightning import losses
from kd_lightning.losses import OFDLoss, ofd_loss
from tests.losses.case import Case
from tests.losses.plain import STUDENTS, TEACHERS, WIDTHS, Plain


def build() -> OFDLoss:
    torch.manual_seed(0)
    return OFDLoss([3, 2], [5, 4])


STUDENT, TEACHER = [(6, 3, 4, 4), (6, 2, 3, 3)], [(6, 5, 4, 4), (6, 4, 3, 3)]
CASES = {
    "OFDLoss": Case(
        build,
        student=STUDENT,
        teacher=TEACHER,
        minimum="elsewhere",
        kinked=True,
        limits={torch.float16: 30.0},  # a teacher's 1e4 and a student's 1e-3 give gradients beyond its range
        wrong=[
            (STUDENT, [(6, 5, 4, 4), (5, 4, 3, 3)]),
            ([(6, 3, 4, 4), (6, 2)], [(6, 5, 4, 4), (6, 4)]),
            ([(0, 3, 4, 4), (0, 2, 3, 3)], [(0, 5, 4, 4), (0, 4, 3, 3)]),
        ],
    )
}


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_ofd(students: list[torch.Tensor], teachers: list[torch.Tensor]) -> float:
    """Each layer has half the weight of the next; 0 where the student lies below a teacher's non-positive feature."""
    total = 0.0
    for i, (student, teacher) in enumerate(zip(students, teachers, strict=True)):
        layer = 0.0
        for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
            layer += 0.0 if s <= t <= 0 else (s - t) ** 2
        total += layer / len(student) / 2 ** (len(students) - 1 - i)
    return total


def test_value_and_gradient_are_those_of_naive_loops():
    students = [maps(3, c, 4, 4, seed=c) for c in (2, 3, 4)]
    teachers = [maps(3, c, 4, 4, seed=10 + c).clamp(min=-0.6) for c in (2, 3, 4)]
    assert ofd_loss(students, teachers).item() == pytest.approx(naive_ofd(students, teachers), rel=1e-12)
    inputs = [student.requires_grad_() for student in students]
    torch.autograd.gradcheck(lambda *layers: ofd_loss([*layers], teachers), inputs)


def test_the_module_puts_a_convolution_and_a_batch_norm_before_it():
    loss = build().double()
    student, teacher = [maps(*shape, seed=1) for shape in STUDENT], [maps(*shape, seed=2) for shape in TEACHER]
    connected = []
    for connector, s in zip(loss.connectors, student, strict=True):
        mixed = torch.einsum("oc,nchw->nohw", connector[0].weight[:, :, 0, 0], s)
        mean, variance = mixed.mean(dim=(0, 2, 3), keepdim=True), mixed.var(dim=(0, 2, 3), keepdim=True, correction=0)
        connected.append((mixed - mean) / (variance + 1e-5).sqrt())
    assert loss(student, teacher).item() == pytest.approx(naive_ofd(connected, teacher), rel=1e-9)


def test_it_equals_the_form_with_the_margin_inside_the_loss():
    student, features = maps(3, 4, 5, 5, seed=1), maps(3, 4, 5, 5, seed=2)
    margin = torch.tensor([-0.2, -0.5, -0.8, -3.0], dtype=torch.float64).view(1, 4, 1, 1)
    below, between, above = features <= margin, (features > margin) & (features <= 0), features > 0
    theirs = (student - margin) ** 2 * ((student > margin) & below)
    theirs = theirs + (student - features) ** 2 * (((student > features) & between) | above)
    assert ofd_loss(student, features.maximum(margin)).item() == pytest.approx(theirs.sum().item() / 3, rel=1e-12)


def test_values_negative_on_both_sides_have_no_gradient():
    student = torch.tensor([[-5.0, -0.1, 0.3]], requires_grad=True)
    teacher = torch.tensor([[-0.5, -0.5, -0.5]])
    (gradient,) = torch.autograd.grad(ofd_loss(student, teacher), student)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.8, 1.6]]))


def test_a_teachers_zero_counts_as_not_active():
    student = torch.tensor([[-1.0, 0.0, 2.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(ofd_loss(student, torch.zeros(1, 3)), student)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.0, 4.0]]))  # 0 where s <= t <= 0


def test_connectors_start_as_the_published_ones():
    torch.manual_seed(0)
    convolution = OFDLoss([64], [100]).connectors[0][0]
    assert convolution.bias is None
    assert convolution.weight.std().item() == pytest.approx(math.sqrt(2 / 100), rel=0.03)


@pytest.mark.parametrize(("student", "teacher"), [((6, 6), (3, 3)), ((3, 3), (6, 6))])
def test_the_larger_map_is_averaged_down(student, teacher):
    loss = build().double()
    s, t = maps(6, 3, *student, seed=1), maps(6, 5, *teacher, seed=2)
    small = [side.unflatten(2, (3, -1)).unflatten(4, (3, -1)).mean(dim=(3, 5)) for side in (s, t)]
    rest = maps(6, 2, 3, 3), maps(6, 4, 3, 3)
    assert loss([s, rest[0]], [t, rest[1]]).item() == pytest.approx(
        loss([small[0], rest[0]], [small[1], rest[1]]).item(), rel=1e-9
    )


def test_invalid_arguments_and_inputs_are_refused():
    with pytest.raises(
        ValueError,
        match=r"student_channels=\[3\] and teacher_channels=\[\] must name a width for every layer, and be of the same",
    ):
        OFDLoss([3], [])
    with pytest.raises(ValueError, match="1 layers of the student and 1 of the teacher, but the loss was built for 2"):
        build()(maps(6, 3, 4, 4), maps(6, 5, 4, 4))
    with pytest.raises(ValueError, match="student features have 3 channels and the loss was built for 2"):
        build()([maps(6, 3, 4, 4)] * 2, [maps(6, 5, 4, 4), maps(6, 4, 4, 4)])


def plain_ofd(m, s, t, y):
    s = [connector(x) for connector, x in zip(m.connectors, s, strict=True)]
    errors = [(F.mse_loss(a, b, reduction="none") * ((a > b) | (b > 0))).sum() for a, b in zip(s, t, strict=True)]
    return (errors[0] / 4 + errors[1] / 2 + errors[2]) / len(t[0])


PLAIN = {
    "OFDLoss": Plain(plain_ofd, STUDENTS, TEACHERS, build=lambda: losses.OFDLoss(*WIDTHS)),
}
