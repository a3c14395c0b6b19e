import pytest
import torch
from torch.nn import functional as F

from kd_lightning.losses import TaskLoss, task_loss
from kd_lightning.losses.response import task
from tests.losses import naive
from tests.losses.plain import Plain


@pytest.fixture
def logits():
    return 3 * torch.randn(7, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def cross_entropy(logits: torch.Tensor, targets: list[list[float]]) -> float:
    """Cross-entropy against one distribution for each sample."""
    rows = zip(logits.tolist(), targets, strict=True)
    return -sum(t * q for row, target in rows for t, q in zip(target, naive.log_softmax(row), strict=True)) / len(
        logits
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
def test_class_indices_are_one_hot_targets_smoothed_towards_uniform(logits, smoothing: float, dtype: torch.dtype):
    labels = [3, 7, 0, 9, 9, 1, 4]
    targets = [[(1 - smoothing) * (c == label) + smoothing / 10 for c in range(10)] for label in labels]
    logits.requires_grad_()
    loss = TaskLoss(smoothing)(logits, None, torch.tensor(labels, dtype=dtype))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(cross_entropy(logits, targets), rel=1e-12)
    soft = torch.tensor([naive.softmax(row) for row in logits.tolist()], dtype=torch.float64)
    torch.testing.assert_close(gradient, (soft - torch.tensor(targets, dtype=torch.float64)) / 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_probabilities_are_used_as_targets(logits, dtype: torch.dtype):
    mixed = torch.softmax(logits.roll(1, dims=0), dim=1).to(dtype)  # what mixup gives
    loss = TaskLoss()(logits, None, mixed)
    assert loss.item() == pytest.approx(cross_entropy(logits, mixed.tolist()), rel=1e-12)


@pytest.mark.parametrize(
    "target",
    [
        torch.zeros(7),
        torch.zeros(7, dtype=torch.int32),
        torch.zeros(7, 10, dtype=torch.long),
        torch.zeros(7, 10).bool(),
    ],
)
def test_targets_of_an_ambiguous_type_are_refused(logits, target):
    with pytest.raises(ValueError, match=f"{target.dtype} do not fit.*int64 class indices"):
        task_loss(logits, target)


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, float("nan")])
def test_a_smoothing_outside_0_to_1_is_refused(logits, smoothing: float):
    with pytest.raises(ValueError, match=rf"label_smoothing={smoothing} must lie in \[0, 1\]"):
        TaskLoss(smoothing)
    with pytest.raises(ValueError, match=rf"label_smoothing={smoothing} must lie in \[0, 1\]"):
        task_loss(logits, torch.zeros(7, dtype=torch.long), smoothing)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_labels_that_hold_together_are_refused_by_the_function_and_at_the_modules_first_call(dtype: torch.dtype):
    target = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]], dtype=dtype)
    for loss in (lambda: task_loss(torch.zeros(2, 4), target), lambda: TaskLoss()(torch.zeros(2, 4), None, target)):
        with pytest.raises(ValueError, match=r"rows that sum to 0 up to 2, .* use BinaryTaskLoss, and BernoulliKDLoss"):
            loss()
    with pytest.raises(ValueError, match=r"of torch\.int64 do not fit.*hold together need BinaryTaskLoss"):
        task_loss(torch.zeros(2, 4), target.long())


def test_the_module_reads_the_labels_in_its_first_call_alone(monkeypatch, logits):
    """Reading them waits for the device."""
    read: list[torch.Tensor] = []
    monkeypatch.setattr(task, "check_distributions", read.append)
    loss = TaskLoss()
    for _ in range(3):
        loss(logits, None, torch.softmax(logits, dim=1))
    assert len(read) == 1


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_samples_without_a_label_do_not_count_and_a_batch_of_them_is_0_with_a_graph(logits, smoothing: float):
    labels = torch.tensor([3, -100, 0, -100, 9, 1, -100])
    kept = labels != -100
    logits.requires_grad_()
    loss = TaskLoss(smoothing)(logits, None, labels)
    torch.testing.assert_close(loss, task_loss(logits[kept], labels[kept], smoothing))
    none = TaskLoss(smoothing)(logits, None, torch.full((7,), -100))
    assert none.item() == 0
    (gradient,) = torch.autograd.grad(none, logits)
    assert torch.equal(gradient, torch.zeros_like(logits))


PLAIN = {
    "TaskLoss": Plain(lambda m, s, t, y: F.cross_entropy(s, y)),
}
