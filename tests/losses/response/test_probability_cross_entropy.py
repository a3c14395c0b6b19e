import math

import pytest
import torch
from torch.nn import functional as F

from kd_lightning.core.term import Term
from kd_lightning.losses.response.probability_cross_entropy import (
    ProbabilityCrossEntropyLoss,
    probability_cross_entropy_loss,
)
from tests.losses.plain import Plain

FLOOR = math.log(math.e + 9) - 1  # ten classes, certain and right


def naive_softmax(row: list[float]) -> list[float]:
    largest = max(row)
    exponentials = [math.exp(value - largest) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def naive_loss(logits: torch.Tensor, target: torch.Tensor) -> float:
    """Apply softmax twice, then the logarithm, in Python floats (float64)."""
    rows = zip(logits.tolist(), target.tolist(), strict=True)
    return sum(-math.log(naive_softmax(naive_softmax(row))[label]) for row, label in rows) / len(target)


def naive_gradient(logits: torch.Tensor, target: torch.Tensor) -> list[list[float]]:
    """dL/dz_k = p_k (g_k - sum_j p_j g_j) / M with g = softmax(p) - onehot(y)."""
    gradient: list[list[float]] = []
    for row, label in zip(logits.tolist(), target.tolist(), strict=True):
        p = naive_softmax(row)
        g = [q - (k == label) for k, q in enumerate(naive_softmax(p))]
        mean = sum(p_j * g_j for p_j, g_j in zip(p, g, strict=True))
        gradient.append([p_k * (g_k - mean) / len(target) for p_k, g_k in zip(p, g, strict=True)])
    return gradient


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 10.0, 1000.0])
@pytest.mark.parametrize("classes", [2, 10])
def test_value_and_gradient_are_those_of_naive_loops(scale: float, classes: int):
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(7, classes, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, (7,), generator=generator)
    logits.requires_grad_()
    loss = ProbabilityCrossEntropyLoss()(logits, None, target)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(naive_loss(logits.detach(), target), rel=1e-12)
    torch.testing.assert_close(gradient, torch.tensor(naive_gradient(logits.detach(), target), dtype=torch.float64))


def test_it_is_not_the_cross_entropy_of_the_logits():
    logits, target = 5 * torch.eye(10), torch.arange(10)
    loss = probability_cross_entropy_loss(logits, None, target)
    assert loss > 10 * torch.nn.functional.cross_entropy(logits, target)


def test_a_certain_prediction_has_the_floor_as_loss_and_a_wrong_one_1_more():
    certain, target = 1000 * torch.eye(10, dtype=torch.float64), torch.arange(10)
    assert probability_cross_entropy_loss(certain, None, target).item() == pytest.approx(FLOOR, rel=1e-12)
    assert probability_cross_entropy_loss(certain, None, target.roll(1)).item() == pytest.approx(FLOOR + 1, rel=1e-12)
    assert pytest.approx(0.0228, abs=5e-5) == FLOOR / 64  # what the origin's printed losses tended to


@pytest.mark.parametrize("margin", [5.0, 10.0, 20.0])
def test_the_gradient_of_a_wrong_prediction_vanishes_with_its_certainty(margin: float):
    logits = torch.zeros(1, 10, dtype=torch.float64)
    logits[0, 3] = margin  # class 3 for certain, the label says 7
    target = torch.tensor([7])
    p = math.exp(0) / (9 + math.exp(margin))
    logits.requires_grad_()
    (starved,) = torch.autograd.grad(probability_cross_entropy_loss(logits, None, target), logits)
    (healthy,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, target), logits)
    assert 0 < -starved[0, 7].item() <= p * (1 - p) * 1.15
    assert -healthy[0, 7].item() == pytest.approx(1 - p)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype):
    logits = (1e4 * torch.randn(64, 10, generator=torch.Generator().manual_seed(0))).to(dtype).requires_grad_()
    target = torch.arange(64) % 10
    loss = probability_cross_entropy_loss(logits, None, target)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(naive_loss(logits.detach().double(), target), rel=1e-5)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("logits", "target"), [((2, 10), (2, 1)), ((2, 10, 4), (2, 4)), ((2, 10), (1,)), ((0, 10), (0,))]
)
def test_shapes_that_do_not_fit_are_refused(logits: tuple[int, ...], target: tuple[int, ...]):
    with pytest.raises(ValueError, match="do not fit"):
        probability_cross_entropy_loss(torch.zeros(logits), None, torch.zeros(target, dtype=torch.long))


def test_its_term_needs_labels():
    term = Term(ProbabilityCrossEntropyLoss(), teacher=None)
    activations = {"logits": torch.zeros(2, 10)}
    assert term(activations, None, {"target": torch.tensor([3, 7])}).item() == pytest.approx(math.log(10))
    with pytest.raises(ValueError, match="label"):
        term(activations, None, {})


PLAIN = {
    "ProbabilityCrossEntropyLoss": Plain(lambda m, s, t, y: F.cross_entropy(s.softmax(1), y)),
}
