import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.losses import RegressionTaskLoss, regression_task_loss
from tests.losses.case import Case
from tests.losses.plain import N, Plain


def values(count: int = 6) -> Tensor:
    return torch.linspace(-2, 3, count * 10, dtype=torch.float32).reshape(count, 10)


CASES = {
    "RegressionTaskLoss": Case(
        target=values,
        limits={torch.float16: 1e4},  # its gradient overflows beyond, as LogitMSELoss's
        wrong=[((6, 4), (6, 4)), ((6, 1), (6, 1)), ((0, 10), (0, 10)), ((6, 10, 2), (6, 10, 2))],
    ),
}


@pytest.mark.parametrize("shape", [(7, 10), (5, 1), (4,), (2, 1, 3, 3)])
def test_value_and_gradient_are_those_of_naive_loops(shape: tuple[int, ...]):
    outputs, target = 3 * torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outputs.requires_grad_()
    loss = RegressionTaskLoss()(outputs, None, target)
    (gradient,) = torch.autograd.grad(loss, outputs)
    pairs = zip(outputs.flatten().tolist(), target.flatten().tolist(), strict=True)
    assert loss.item() == pytest.approx(sum((z - y) ** 2 for z, y in pairs) / outputs.numel(), rel=1e-12)
    torch.testing.assert_close(gradient, 2 * (outputs - target).detach() / outputs.numel())


def test_values_of_one_output_have_either_shape():
    outputs, target = torch.tensor([[0.5], [-1.0]]), torch.tensor([1.0, 2.0])
    expected = F.mse_loss(outputs[:, 0], target)
    for seen, wanted in ((outputs, target), (outputs, target[:, None]), (outputs[:, 0], target[:, None])):
        assert torch.equal(regression_task_loss(seen, wanted), expected)


def test_class_indices_are_refused_with_the_loss_that_takes_them():
    with pytest.raises(ValueError, match=r"outputs \(4, 1\) and target \(4, 1\) of torch.int64 .* need TaskLoss"):
        RegressionTaskLoss()(torch.zeros(4, 1), None, torch.arange(4))


PLAIN = {
    "RegressionTaskLoss": Plain(
        lambda m, s, t, y: F.mse_loss(s, y), target=lambda: values(N), student=(N, 10), teacher=(N, 10)
    ),
}
