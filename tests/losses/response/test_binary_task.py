import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.losses import BinaryTaskLoss, binary_task_loss
from kd_lightning.losses.response import binary_task
from tests.losses.case import Case
from tests.losses.plain import N, Plain


def labels(count: int = 6) -> Tensor:
    return (torch.arange(count * 10).reshape(count, 10) % 3 == 0).float()


CASES = {
    "BinaryTaskLoss": Case(
        target=labels, wrong=[((6, 4), (6, 4)), ((6, 1), (6, 1)), ((0, 10), (0, 10)), ((6, 10, 2), (6, 10, 2))]
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("shape", [(7, 10), (5, 1), (4,)])
def test_value_and_gradient_are_those_of_naive_loops(shape: tuple[int, ...], dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    target = torch.randint(2, shape, generator=generator).to(dtype)
    logits.requires_grad_()
    loss = BinaryTaskLoss()(logits, None, target)
    (gradient,) = torch.autograd.grad(loss, logits)
    pairs = zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True)
    total = sum(math.log1p(math.exp(-z if label else z)) for z, label in pairs)
    assert loss.item() == pytest.approx(total / logits.numel(), rel=1e-12)
    torch.testing.assert_close(gradient, (logits.sigmoid() - target.double()).detach() / logits.numel())
    assert torch.equal(binary_task_loss(logits, target), loss)


def test_labels_of_one_output_have_either_shape():
    logits = torch.tensor([[0.5], [-1.0], [2.0]])
    expected = F.binary_cross_entropy_with_logits(logits[:, 0], torch.tensor([1.0, 0.0, 0.0]))
    for target in (torch.tensor([1, 0, 0]), torch.tensor([[1], [0], [0]]), torch.tensor([True, False, False])):
        assert torch.equal(BinaryTaskLoss()(logits, None, target), expected)
        assert torch.equal(BinaryTaskLoss()(logits[:, 0], None, target), expected)


def test_probabilities_are_targets():
    logits, target = torch.tensor([[0.5, -1.0]]), torch.tensor([[0.3, 0.9]])
    assert torch.equal(binary_task_loss(logits, target), F.binary_cross_entropy_with_logits(logits, target))


def test_the_only_known_label_counts_fully():
    logits = torch.tensor([[0.5, -1.0]])
    expected = F.binary_cross_entropy_with_logits(logits[:, :1], torch.ones(1, 1))
    torch.testing.assert_close(binary_task_loss(logits, torch.tensor([[1, -100]])), expected)


def test_the_module_reads_the_labels_in_its_first_call_alone(monkeypatch):
    """Reading them waits for the device."""
    read: list[Tensor] = []
    monkeypatch.setattr(binary_task, "check_labels", lambda target, unlabeled: read.append(target))
    loss = BinaryTaskLoss()
    for _ in range(3):
        loss(torch.zeros(2, 2), None, torch.ones(2, 2))
    assert len(read) == 1


def test_unknown_labels_do_not_count():
    logits = torch.tensor([[0.5, -1.0, 3.0], [2.0, 1.0, 0.0]], requires_grad=True)
    target = torch.tensor([[1, -100, 0], [-100, -100, 1]])
    known = target != -100
    loss = binary_task_loss(logits, target)
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(logits[known], target[known].float()))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[~known].any()
    none = binary_task_loss(logits, torch.full((2, 3), -100))
    assert none.item() == 0
    assert not torch.autograd.grad(none, logits)[0].any()


@pytest.mark.parametrize("target", [torch.tensor([[1, 0], [0, 3]]), torch.tensor([[0.0, 1.0], [-0.5, 1.0]])])
def test_labels_outside_0_and_1_are_refused_by_the_function_and_at_the_modules_first_call(target: Tensor):
    for loss in (
        lambda: binary_task_loss(torch.zeros(2, 2), target),
        lambda: BinaryTaskLoss()(torch.zeros(2, 2), None, target),
    ):
        with pytest.raises(
            ValueError, match=r"holds the label (3|-0.5): .* are 0 and 1, .*TaskLoss.*RegressionTaskLoss"
        ):
            loss()


def test_class_indices_are_refused_with_the_loss_that_takes_them():
    with pytest.raises(ValueError, match=r"outputs \(4, 10\) and target \(4,\) of torch.int64 .* need TaskLoss"):
        BinaryTaskLoss()(torch.zeros(4, 10), None, torch.arange(4))


PLAIN = {
    "BinaryTaskLoss": Plain(
        lambda m, s, t, y: F.binary_cross_entropy_with_logits(s, y[:, : s.shape[1]]),
        target=lambda: (torch.arange(N * 10).reshape(N, 10) % 3 == 0).float(),
        student=(N, 10),
        teacher=(N, 10),
    ),
}
