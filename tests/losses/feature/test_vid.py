import math

import pytest
import torch
from torch.nn import functional as F

from kd_lightning import losses
from kd_lightning.losses import VIDLoss, vid_loss
from tests.losses.case import Case, other_implementation
from tests.losses.plain import STUDENT, TEACHER, Plain


def build(initial_variance: float = 5.0) -> VIDLoss:
    torch.manual_seed(0)
    return VIDLoss(student_channels=3, teacher_channels=4, initial_variance=initial_variance)


CASES = {
    "VIDLoss": Case(
        build,
        student=(6, 3, 4, 4),
        teacher=(6, 4, 3, 3),
        minimum="elsewhere",
        kinked=True,
        wrong=[
            ((6, 3, 4, 4), (5, 4, 4, 4)),
            ((6, 3), (6, 4)),
            ((0, 3, 4, 4), (0, 4, 4, 4)),
        ],
    )
}


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_vid(student: torch.Tensor, teacher: torch.Tensor, variance: list[float]) -> float:
    """-log N(t; s, v) - log(2 pi) / 2, averaged over all values."""
    total = 0.0
    for s_sample, t_sample in zip(student.flatten(2).tolist(), teacher.flatten(2).tolist(), strict=True):
        for s_channel, t_channel, v in zip(s_sample, t_sample, variance, strict=True):
            for s, t in zip(s_channel, t_channel, strict=True):
                density = math.exp(-((t - s) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v)
                total -= math.log(density) + math.log(2 * math.pi) / 2
    return total / student.numel()


def test_value_is_that_of_naive_loops():
    student, teacher = maps(2, 3, 2, 4, seed=1), maps(2, 3, 2, 4, seed=2)
    variance = [0.3, 1.0, 7.0]
    value = vid_loss(student, teacher, torch.tensor(variance, dtype=torch.float64)).item()
    assert value == pytest.approx(naive_vid(student, teacher, variance), rel=1e-9)


def test_the_module_regresses_the_means_and_begins_with_a_variance_of_five():
    loss = build().double()
    student, teacher = maps(2, 3, 6, 4, seed=1), maps(2, 4, 3, 2, seed=2)
    values = student.unflatten(2, (3, 2)).unflatten(4, (2, 2)).mean(dim=(3, 5))  # pooled to the teacher's size
    for i in (0, 2, 4):
        values = torch.einsum("oc,nchw->nohw", loss.regressor[i].weight[:, :, 0, 0], values)
        values = values.clamp(min=0) if i < 4 else values
    assert loss.variance.tolist() == pytest.approx([5.0] * 4, rel=1e-6)
    assert loss(student, teacher).item() == pytest.approx(naive_vid(values, teacher, loss.variance.tolist()), rel=1e-9)


@pytest.mark.parametrize("variance", [1e-4, 0.1, 1.0, 5.0, 1e3])
def test_the_initial_variance_is_the_given_one(variance):
    assert build(variance).variance.tolist() == pytest.approx([variance] * 4, rel=1e-4)


def test_the_variance_converges_to_the_mean_squared_error():
    student, teacher = torch.zeros(64, 4, 4, 4), maps(64, 4, 4, 4).float()
    teacher *= torch.tensor([0.5, 1.0, 2.0, 4.0]).view(1, 4, 1, 1)
    loss = build()
    optimizer = torch.optim.Adam([loss.rho], lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        vid_loss(student, teacher, loss.variance).backward()
        optimizer.step()
    wanted = teacher.square().mean(dim=(0, 2, 3)).tolist()
    assert loss.variance.tolist() == pytest.approx(wanted, rel=0.02)


def test_it_equals_torchdistill():
    pairs = {"pair": {side: {"path": "1", "io": "output"} for side in ("student", "teacher")}}
    student, teacher = maps(3, 4, 3, 3, seed=1).float(), maps(3, 4, 3, 3, seed=2).float()
    variance = torch.tensor([0.5, 1.0, 2.0, 4.0])
    theirs = other_implementation("torchdistill.losses.mid_level").VIDLoss(pairs)
    value = theirs({"1": {"output": (student, variance.view(1, 4, 1, 1))}}, {"1": {"output": teacher}})
    torch.testing.assert_close(vid_loss(student, teacher, variance), value, rtol=1e-5, atol=0)


def test_the_parameters_are_those_of_torchdistills_regressor():
    theirs = other_implementation("torchdistill.models.wrapper").Regressor4VID(3, 4, 4, eps=1e-5, init_pred_var=5.0)
    ours, student = build(), maps(2, 3, 3, 3).float()
    theirs.regressor.load_state_dict(ours.regressor.state_dict())
    mean, variance = theirs(student)
    torch.testing.assert_close(ours.regressor(student), mean)
    torch.testing.assert_close(ours.variance, variance.flatten())


@pytest.mark.parametrize("variance", [0.0, -1.0, 1e-5, float("nan"), float("inf")])
def test_an_invalid_variance_is_refused(variance):
    with pytest.raises(ValueError, match="must be a finite number above 1e-05"):
        build(variance)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"variance \(1,\) and student features \(2, 4, 3, 3\) do not fit"):
        vid_loss(torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3), torch.ones(1))
    with pytest.raises(ValueError, match="set its teacher_channels to 5"):
        build()(torch.zeros(2, 3, 3, 3), torch.zeros(2, 5, 3, 3))


def plain_vid(m, s, t, y):
    variance = F.softplus(m.rho) + 1e-5
    errors = F.mse_loss(m.regressor(s), t, reduction="none").mean((0, 2, 3))
    return (errors / variance + variance.log()).mean() / 2


PLAIN = {
    "VIDLoss": Plain(plain_vid, STUDENT, TEACHER, build=lambda: losses.VIDLoss(32, 128)),
}
