import math

import pytest
import torch
from torch.nn import functional as F

from kd_lightning import losses
from kd_lightning.losses import CWDLoss, cwd_loss
from tests.losses import naive
from tests.losses.case import Case
from tests.losses.plain import STUDENT, TEACHER, Plain


def build(temperature: float = 4.0) -> CWDLoss:
    torch.manual_seed(0)
    return CWDLoss(student_channels=3, teacher_channels=5, temperature=temperature)


def of_one_width(temperature: float = 4.0) -> CWDLoss:
    return CWDLoss(student_channels=3, teacher_channels=3, temperature=temperature)


CASES = {
    "CWDLoss": Case(of_one_width, student=(6, 3, 4, 4), teacher=(6, 3, 4, 4)),
    "CWDLoss with a connector": Case(
        build,
        student=(6, 3, 4, 4),
        teacher=(6, 5, 3, 3),
        minimum="elsewhere",
        wrong=[((6, 3, 4, 4), (5, 5, 4, 4)), ((6, 3), (6, 5)), ((0, 3, 4, 4), (0, 5, 4, 4))],
    ),
}


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_cwd(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    """KD loss with each channel of each sample as a row, and positions as classes."""
    return naive.kd(student.flatten(0, 1).flatten(1), teacher.flatten(0, 1).flatten(1), temperature)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_value_and_gradient_are_those_of_naive_loops(temperature):
    student, teacher = maps(2, 3, 2, 4, seed=1).requires_grad_(), maps(2, 3, 2, 4, seed=2)
    value = cwd_loss(student, teacher, temperature)
    assert value.item() == pytest.approx(naive_cwd(student, teacher, temperature), rel=1e-9)
    rows = naive.kd_gradient(student.flatten(0, 1).flatten(1), teacher.flatten(0, 1).flatten(1), temperature)
    (gradient,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(gradient.flatten(), torch.tensor(rows, dtype=torch.float64).flatten())


def test_the_student_is_connected_and_pooled():
    loss = build().double()
    student, teacher = maps(2, 3, 6, 4, seed=1), maps(2, 5, 3, 2, seed=2)
    connected = torch.einsum("oc,nchw->nohw", loss.connector.weight[:, :, 0, 0], student)
    connected = connected + loss.connector.bias.view(1, 5, 1, 1)
    pooled = connected.unflatten(2, (3, 2)).unflatten(4, (2, 2)).mean(dim=(3, 5))
    assert loss(student, teacher).item() == pytest.approx(naive_cwd(pooled, teacher, 4.0), rel=1e-9)
    assert not [*of_one_width().parameters()]


def test_it_is_invariant_to_a_constant_in_each_channel():
    teacher = maps(2, 3, 4, 4)
    offset = torch.tensor([-5.0, 0.0, 100.0], dtype=torch.float64).view(1, 3, 1, 1)
    assert cwd_loss(teacher + offset, teacher).item() == pytest.approx(0, abs=1e-12)
    assert cwd_loss(teacher.flip(1), teacher).item() > 0.1


def test_it_is_the_authors_sum_over_positions_over_samples_and_channels():
    student, teacher = maps(2, 3, 4, 4, seed=1), maps(2, 3, 4, 4, seed=2)
    s, t = ((side / 4).flatten(2).softmax(dim=-1) for side in (student, teacher))
    theirs = torch.nn.functional.kl_div(s.log(), t, reduction="sum") / (2 * 3) * 16
    assert cwd_loss(student, teacher).item() == pytest.approx(theirs.item(), rel=1e-9)


def test_with_a_single_position_it_is_zero():
    assert cwd_loss(maps(2, 3, 1, 1, seed=1), maps(2, 3, 1, 1, seed=2)).item() == 0
    assert math.isfinite(cwd_loss(maps(2, 3, 1, 1), 1e4 * maps(2, 3, 4, 4)).item())


def test_different_widths_are_refused():
    with pytest.raises(ValueError, match="must have the same number of channels: use CWDLoss, which has a connector"):
        cwd_loss(maps(2, 3, 4, 4), maps(2, 4, 4, 4))
    with pytest.raises(ValueError, match="set its student_channels to 5"):
        build()(torch.zeros(2, 5, 4, 4), torch.zeros(2, 5, 4, 4))


def test_a_masked_position_of_the_teacher_contributes_nothing():
    student, teacher = torch.zeros(1, 1, 1, 3), torch.tensor([[[[4.0, 0.0, -math.inf]]]])
    p = teacher.flatten().softmax(dim=0)[:2].tolist()
    expected = sum(share * math.log(3 * share) for share in p)
    assert cwd_loss(student, teacher, temperature=1.0).item() == pytest.approx(expected, rel=1e-5)


def plain_cwd(m, s, t, y):
    s, t = F.log_softmax(m.connector(s).flatten(2) / 4, 2), F.log_softmax(t.flatten(2) / 4, 2)
    return F.kl_div(s, t, reduction="batchmean", log_target=True) * 16 / t.shape[1]


PLAIN = {
    "CWDLoss": Plain(plain_cwd, STUDENT, TEACHER, build=lambda: losses.CWDLoss(32, 128)),
}
