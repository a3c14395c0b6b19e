import pytest
import torch

from kd_lightning.losses import LogitMSELoss
from tests.losses import naive


@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (7, 10)])
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
