import pytest
import torch
from torch.nn import functional as F

from kd_lightning import losses
from kd_lightning.losses import MGDLoss, mgd_loss
from tests.losses import naive
from tests.losses.case import Case
from tests.losses.plain import STUDENT, TEACHER, Plain


def build(student_channels: int = 3, **given) -> MGDLoss:
    torch.manual_seed(0)
    return MGDLoss(student_channels, teacher_channels=5, **given)


WRONG = [((6, 3, 4, 4), (6, 5, 3, 3)), ((6, 3, 4, 4), (5, 5, 4, 4)), ((6, 3), (6, 5)), ((0, 3, 4, 4), (0, 5, 4, 4))]
CASES = {
    "MGDLoss": Case(
        build,
        student=(6, 3, 4, 4),
        teacher=(6, 5, 4, 4),
        minimum="elsewhere",
        kinked=True,
        random=True,
        limits={torch.float16: 1e3},  # the gradient of the sum over features grows with them
        wrong=WRONG,
    ),
    "MGDLoss of positions": Case(
        lambda: build(spatial=True, ratio=0.65),
        student=(6, 3, 4, 4),
        teacher=(6, 5, 4, 4),
        minimum="elsewhere",
        kinked=True,
        random=True,
        limits={torch.float16: 1e3},
    ),
}


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def convolve(x: list, weight: list, bias: list) -> list:
    """A 3x3 convolution of one image with zero padding."""
    height, width = len(x[0]), len(x[0][0])

    def at(channel: list, i: int, j: int) -> float:
        return channel[i][j] if 0 <= i < height and 0 <= j < width else 0.0

    def value(kernel: list, b: float, i: int, j: int) -> float:
        window = [(c, a, k) for c in range(len(x)) for a in range(3) for k in range(3)]
        return b + sum(kernel[c][a][k] * at(x[c], i + a - 1, j + k - 1) for c, a, k in window)

    return [
        [[value(kernel, b, i, j) for j in range(width)] for i in range(height)]
        for kernel, b in zip(weight, bias, strict=True)
    ]


def naive_mgd(loss: MGDLoss, aligned: torch.Tensor, mask: torch.Tensor, teacher: torch.Tensor) -> float:
    first, second = (loss.generator[i] for i in (0, 2))
    total = 0.0
    for sample, t in naive.pairs(aligned * mask, teacher):
        hidden = convolve(sample, first.weight.tolist(), first.bias.tolist())
        hidden = [[[max(value, 0.0) for value in row] for row in channel] for channel in hidden]
        made = torch.tensor(convolve(hidden, second.weight.tolist(), second.bias.tolist()), dtype=torch.float64)
        total += (made - torch.tensor(t, dtype=torch.float64)).square().sum().item()
    return total / len(aligned)


@pytest.mark.parametrize(("spatial", "shape"), [(False, (2, 5, 1, 1)), (True, (2, 1, 3, 2))])
def test_value_is_that_of_naive_loops_with_the_same_mask(spatial, shape):
    loss = build(spatial=spatial, ratio=0.4).double()
    student, teacher = maps(2, 3, 3, 2, seed=1), maps(2, 5, 3, 2, seed=2)
    aligned = torch.einsum("oc,nchw->nohw", loss.align.weight[:, :, 0, 0], student) + loss.align.bias.view(1, 5, 1, 1)
    torch.manual_seed(3)
    mask = torch.rand(shape) >= 0.4
    assert 0 < mask.float().mean() < 1
    torch.manual_seed(3)
    assert loss(student, teacher).item() == pytest.approx(naive_mgd(loss, aligned.detach(), mask, teacher), rel=1e-9)


def test_the_gradient_is_the_difference_over_samples():
    student, teacher = maps(3, 4, 2, 2, seed=1).requires_grad_(), maps(3, 4, 2, 2, seed=2)
    (gradient,) = torch.autograd.grad(mgd_loss(student, teacher), student)
    torch.testing.assert_close(gradient, 2 * (student.detach() - teacher) / 3)


@pytest.mark.parametrize(("spatial", "dims"), [(False, (0, 1)), (True, (0, 2, 3))])
def test_the_mask_differs_in_each_call_and_has_the_given_ratio(spatial, dims):
    loss = MGDLoss(5, 5, ratio=0.25, spatial=spatial)
    student, teacher = torch.ones(64, 5, 6, 6, requires_grad=True), torch.zeros(64, 5, 6, 6)
    assert [*loss.align.parameters()] == []  # of one width: no convolution
    masks = []
    for _ in range(2):
        (gradient,) = torch.autograd.grad(loss(student, teacher), student)
        masks.append(gradient != 0)
    assert not torch.equal(*masks)
    others = tuple({0, 1, 2, 3} - set(dims))
    kept = masks[0].any(dim=others)
    assert torch.equal(masks[0].all(dim=others), kept)  # whole channels, or all channels at a position
    assert kept.double().mean().item() == pytest.approx(0.75, abs=0.06)


@pytest.mark.parametrize(("ratio", "left"), [(0.0, True), (1.0, False)])
def test_ratio_0_keeps_everything_and_ratio_1_nothing(ratio, left):
    student = maps(6, 3, 4, 4).float().requires_grad_()
    (gradient,) = torch.autograd.grad(build(ratio=ratio)(student, maps(6, 5, 4, 4).float()), student)
    assert gradient.any().item() is left


def test_invalid_arguments_and_inputs_are_refused():
    with pytest.raises(ValueError, match=r"ratio=1.5 must lie in \[0, 1\]"):
        build(ratio=1.5)
    with pytest.raises(ValueError, match="student features have 4 channels and the loss was built for 3"):
        build()(torch.zeros(2, 4, 4, 4), torch.zeros(2, 5, 4, 4))


def plain_mgd(m, s, t, y):
    s = m.align(s)
    masked = s * (torch.rand(*s.shape[:2], 1, 1) >= 0.15)
    return F.mse_loss(m.generator(masked), t, reduction="sum") / len(s)


PLAIN = {
    "MGDLoss": Plain(plain_mgd, STUDENT, TEACHER, build=lambda: losses.MGDLoss(32, 128)),
}
