import pytest
import torch
from torch.nn import functional as F

from kd_lightning.losses import LogitMSELoss
from tests.losses import naive
from tests.losses.case import Case
from tests.losses.plain import Plain

CASES = {
    "LogitMSELoss": Case(
        limits={torch.float16: 1e4},  # its gradient 2 (s - t) / (N C) overflows beyond, at N C = 2
        wrong=[((4, 10), (4, 5)), ((4, 1), (4, 10)), ((4, 1), (4,)), ((1, 10), (4, 10)), ((0, 3), (0, 3)), ((), ())],
    ),
    "LogitMSELoss of one output": Case(LogitMSELoss, student=(6, 1), teacher=(6, 1), limits={torch.float16: 1e4}),
}


@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (7, 10), (5, 1)])
def test_value_and_gradient_are_those_of_naive_loops(rows: int, classes: int):
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    loss = LogitMSELoss()(student, teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    differences = [[s_c - t_c for s_c, t_c in zip(s, t, strict=True)] for s, t in naive.pairs(student, teacher)]
    squares = sum(value**2 for row in differences for value in row)
    assert loss.item() == pytest.approx(squares / (rows * classes), rel=1e-12)
    expected = torch.tensor(differences, dtype=torch.float64) * 2 / (rows * classes)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)
    # the paper's loss, half the sum over classes averaged over the samples, is C / 2 times this one
    assert loss.item() * classes / 2 == pytest.approx(squares / 2 / rows, rel=1e-12)


@pytest.mark.parametrize("temperature", [10, 4, 1])
def test_the_teachers_logits_are_scaled_by_the_annealing_factor(temperature: int):
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    left = 1 - (temperature - 1) / 10
    pairs = [pair for s, t in naive.pairs(student, teacher) for pair in zip(s, t, strict=True)]
    expected = sum((s - left * t) ** 2 for s, t in pairs) / 20
    assert LogitMSELoss(teacher_scale=left)(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_a_scale_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="teacher_scale=nan must be a finite number"):
        LogitMSELoss(teacher_scale=float("nan"))


PLAIN = {
    "LogitMSELoss": Plain(lambda m, s, t, y: F.mse_loss(s, t)),
}
