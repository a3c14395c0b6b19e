import pytest
import torch
from torch.nn import functional as F

from kd_lightning.losses import SoftCrossEntropyLoss, kd_loss
from tests.losses import naive
from tests.losses.case import Case
from tests.losses.plain import Plain

CASES = {"SoftCrossEntropyLoss": Case(minimum="not zero")}  # the entropy of the soft targets stays


@pytest.fixture(params=[0.1, 3.0, 100.0])
def logits(request):
    generator = torch.Generator().manual_seed(0)
    student, teacher = request.param * torch.randn(2, 7, 10, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0, 50.0, 1000.0])
def test_it_is_the_naive_sum(logits, temperature: float):
    student, teacher = logits
    total = 0.0
    for s, t in naive.pairs(student, teacher):
        log_q, p = naive.log_softmax(s, temperature), naive.softmax(t, temperature)
        total -= sum(p_c * q_c for p_c, q_c in zip(p, log_q, strict=True))
    loss = SoftCrossEntropyLoss(temperature)(student, teacher)
    assert loss.item() == pytest.approx(temperature**2 * total / 7, rel=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0, 50.0, 1000.0])
def test_it_differs_from_kd_by_the_teachers_entropy_and_has_the_same_gradient(logits, temperature: float):
    student, teacher = logits
    loss, divergence = SoftCrossEntropyLoss(temperature)(student, teacher), kd_loss(student, teacher, temperature)
    entropy = temperature**2 * naive.entropy(teacher, temperature)
    assert (loss - divergence).item() == pytest.approx(entropy, rel=1e-9, abs=1e-9)
    (gradient,), (expected,) = torch.autograd.grad(loss, student), torch.autograd.grad(divergence, student)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def plain_soft_cross_entropy(m, s, t, y):
    return F.cross_entropy(s / 4, (t / 4).softmax(1)) * 16


PLAIN = {
    "SoftCrossEntropyLoss": Plain(plain_soft_cross_entropy),
}
