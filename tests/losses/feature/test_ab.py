import pytest
import torch

from kd_lightning import losses
from kd_lightning.losses import ABLoss, ab_loss
from tests.losses import naive
from tests.losses.case import Case, other_implementation
from tests.losses.plain import STUDENTS, TEACHERS, WIDTHS, Plain


def build(margin: float = 1.0) -> ABLoss:
    torch.manual_seed(0)
    return ABLoss(student_channels=[3, 2], teacher_channels=[5, 4], margin=margin)


CASES = {
    "ABLoss": Case(
        build,
        student=[(6, 3, 4, 4), (6, 2, 3, 3)],
        teacher=[(6, 5, 4, 4), (6, 4, 3, 3)],
        minimum="elsewhere",
        kinked=True,
        # all there is of a large constant map behind BatchNorm is the rounding of its mean
        limits=dict.fromkeys((torch.float16, torch.bfloat16, torch.float32), 100.0),
        wrong=[
            ([(6, 3, 4, 4), (6, 2, 3, 3)], [(6, 5, 4, 4), (6, 4, 2, 2)]),
            ([(6, 3, 4, 4), (6, 2, 3, 3)], [(5, 5, 4, 4), (5, 4, 3, 3)]),
        ],
    )
}


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_ab(student: torch.Tensor, teacher: torch.Tensor, margin: float) -> float:
    """Separate sums for neurons that are inactive and active in the teacher."""
    total = 0.0
    for s_row, t_row in naive.pairs(student.flatten(1), teacher.flatten(1)):
        for s, t in zip(s_row, t_row, strict=True):
            if t <= 0 and s > -margin:
                total += (s + margin) ** 2
            elif t > 0 and s <= margin:
                total += (s - margin) ** 2
    return total / len(student)


@pytest.mark.parametrize("margin", [0.3, 1.0, 3.0])
def test_value_is_that_of_naive_loops(margin):
    student, teacher = maps(3, 4, 3, 3, seed=1), maps(3, 4, 3, 3, seed=2)
    teacher[0, 0] = 0  # not active
    assert ab_loss(student, teacher, margin).item() == pytest.approx(naive_ab(student, teacher, margin), rel=1e-9)


def test_each_layer_has_twice_the_weight_of_the_one_before_and_a_connector():
    loss = ABLoss([3, 2, 2], [5, 4, 4]).double()
    student = [maps(4, c, 3, 3, seed=i) for i, c in enumerate((3, 2, 2))]
    teacher = [maps(4, c, 3, 3, seed=i + 5) for i, c in enumerate((5, 4, 4))]
    wanted = 0.0
    for weight, connector, s, t in zip((0.25, 0.5, 1.0), loss.connectors, student, teacher, strict=True):
        mixed = torch.einsum("oc,nchw->nohw", connector[0].weight[:, :, 0, 0], s)
        variance, mean = torch.var_mean(mixed, dim=(0, 2, 3), correction=0, keepdim=True)
        wanted += weight * naive_ab((mixed - mean) / (variance + 1e-5).sqrt(), t, margin=1.0)
    assert loss(student, teacher).item() == pytest.approx(wanted, rel=1e-9)


def test_it_vanishes_beyond_the_margin_and_ignores_the_teachers_magnitude():
    teacher = maps(2, 3, 4, 4)
    student = (1.01 * teacher.sign()).requires_grad_()
    assert ab_loss(student, teacher).item() == 0
    value = ab_loss(0.5 * student, teacher).item()
    assert value == pytest.approx(48 * (1 - 0.505) ** 2, rel=1e-9)
    assert ab_loss(0.5 * student, 1e-3 * teacher).item() == value


def test_it_equals_torchdistill_and_with_weight_3_in_1000_repdistiller():
    pairs = {"pair": {side: {"path": "1", "io": "output"} for side in ("student", "teacher")}}
    student, teacher = maps(3, 4, 3, 3, seed=1).float(), maps(3, 4, 3, 3, seed=2).float()
    theirs = other_implementation("torchdistill.losses.mid_level").AltActTransferLoss(pairs, 1.0, "mean")
    value = theirs({"1": {"output": student}}, {"1": {"output": teacher}})
    torch.testing.assert_close(ab_loss(student, teacher), value, rtol=1e-5, atol=0)


@pytest.mark.parametrize("margin", [0.0, -1.0, float("nan"), float("inf")])
def test_an_invalid_margin_is_refused(margin):
    with pytest.raises(ValueError, match="must be a finite number above 0"):
        build(margin)
    with pytest.raises(ValueError, match="must be a finite number above 0"):
        ab_loss(maps(2, 3), maps(2, 3), margin)


def test_widths_and_layers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="must name a width for every layer, and be of the same length"):
        ABLoss([3, 2], [5])
    with pytest.raises(ValueError, match="1 layers of the student and 1 of the teacher, but the loss was built for 2"):
        build()([torch.zeros(2, 3, 4, 4)], [torch.zeros(2, 5, 4, 4)])
    with pytest.raises(ValueError, match="teacher features have 3 channels and the loss was built for 4"):
        build()([torch.ones(2, 3, 4, 4), torch.ones(2, 2, 4, 4)], [torch.ones(2, 5, 4, 4), torch.ones(2, 3, 4, 4)])


def plain_ab(m, s, t, y):
    s = [connector(x) for connector, x in zip(m.connectors, s, strict=True)]
    hinges = [(1 - torch.where(b > 0, 1.0, -1.0) * a).relu().square().sum() for a, b in zip(s, t, strict=True)]
    return (hinges[0] / 4 + hinges[1] / 2 + hinges[2]) / len(t[0])


PLAIN = {
    "ABLoss": Plain(plain_ab, STUDENTS, TEACHERS, build=lambda: losses.ABLoss(*WIDTHS)),
}
