import pytest
import torch

from kd_lightning import losses
from kd_lightning.losses import HintLoss, hint_loss
from tests.losses import naive
from tests.losses.case import Case
from tests.losses.plain import STUDENT, TEACHER, Plain, hint


def build(**given) -> HintLoss:
    torch.manual_seed(0)
    return HintLoss(student_channels=3, teacher_channels=5, **given)


CASES = {
    "HintLoss": Case(
        build,
        student=(6, 3, 4, 4),
        teacher=(6, 5, 4, 4),
        minimum="elsewhere",
        kinked=True,
        wrong=[
            ((6, 3, 4, 4), (6, 5, 3, 3)),
            ((6, 3, 3, 3), (6, 5, 4, 4)),
            ((5, 3, 4, 4), (6, 5, 4, 4)),
            ((6, 3), (6, 5)),
            ((0, 3, 4, 4), (0, 5, 4, 4)),
        ],
    ),
    "HintLoss of a larger map": Case(
        lambda: build(kernel_size=3), student=(6, 3, 6, 6), teacher=(6, 5, 4, 4), minimum="elsewhere", kinked=True
    ),
}


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_regressor(student: torch.Tensor, weight: list, bias: list, size: int) -> list[list[list[list[float]]]]:
    """ReLU of weighted sums over windows."""
    k = len(weight[0][0])
    return [
        [
            [
                [
                    max(
                        0.0,
                        bias[o]
                        + sum(
                            weight[o][c][a][b] * sample[c][i + a][j + b]
                            for c in range(len(sample))
                            for a in range(k)
                            for b in range(k)
                        ),
                    )
                    for j in range(size)
                ]
                for i in range(size)
            ]
            for o in range(len(weight))
        ]
        for sample in student.tolist()
    ]


def naive_hint(student: torch.Tensor, teacher: torch.Tensor) -> float:
    """Half the squares, summed over features, averaged over samples, divided by the number of features."""
    rows = naive.pairs(student.flatten(1), teacher.flatten(1))
    return sum(sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / 2 for s, t in rows) / len(rows) / len(rows[0][0])


@pytest.mark.parametrize("kernel_size", [1, 2, 3])
def test_value_is_that_of_naive_loops_after_the_papers_regressor(kernel_size):
    loss = build(kernel_size=kernel_size).double()
    size = 5 - kernel_size
    student, teacher = maps(2, 3, 4, 4, seed=1), maps(2, 5, size, size, seed=2)
    convolution = loss.connector[0]
    guided = naive_regressor(student, convolution.weight.tolist(), convolution.bias.tolist(), size)
    wanted = naive_hint(torch.tensor(guided, dtype=torch.float64), teacher)
    assert loss(student, teacher).item() == pytest.approx(wanted, rel=1e-9)


def test_the_gradient_is_the_difference_over_all_values():
    student, teacher = maps(3, 4, 2, 2, seed=1).requires_grad_(), maps(3, 4, 2, 2, seed=2)
    (gradient,) = torch.autograd.grad(hint_loss(student, teacher), student)
    torch.testing.assert_close(gradient, (student.detach() - teacher) / 48)


def test_the_public_weight_of_100_is_200_here():
    student, teacher = maps(3, 4, 2, 2, seed=1), maps(3, 4, 2, 2, seed=2)
    assert (200 * hint_loss(student, teacher)).item() == pytest.approx(100 * (student - teacher).square().mean().item())


def test_different_sizes_are_refused_with_the_right_kernel_size():
    with pytest.raises(
        ValueError, match=r"differ in size after the regressor with kernel_size=1: set it to 1 \+ H_s - H_t"
    ):
        build()(torch.zeros(2, 3, 6, 6), torch.zeros(2, 5, 4, 4))
    with pytest.raises(ValueError, match="kernel_size=0 must be at least 1"):
        build(kernel_size=0)


def test_another_width_is_refused():
    with pytest.raises(ValueError, match="student features have 4 channels and the loss was built for 3"):
        build()(torch.zeros(2, 4, 4, 4), torch.zeros(2, 5, 4, 4))
    with pytest.raises(ValueError, match="set its teacher_channels to 3"):
        build()(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))


PLAIN = {
    "HintLoss": Plain(hint, STUDENT, TEACHER, build=lambda: losses.HintLoss(32, 128)),
}
