import pytest
import torch
from torch.nn import functional as F

from kd_lightning.losses import KLMAELoss, kl_mae_loss
from tests.losses import naive
from tests.losses.case import Case
from tests.losses.plain import Plain

CASES = {"KLMAELoss": Case(kinked=True)}  # where a probability equals its target


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(2, 7, 10, generator=generator, dtype=torch.float64)


def absolute_error(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    soft = [(naive.softmax(s, temperature), naive.softmax(t, temperature)) for s, t in naive.pairs(student, teacher)]
    return sum(abs(q_c - p_c) for q, p in soft for q_c, p_c in zip(q, p, strict=True)) / student.numel()


@pytest.mark.parametrize("temperature", [0.5, 4.0, 50.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_it_is_the_weighted_mean_of_naive_sums(logits, temperature: float, alpha: float):
    student, teacher = logits
    divergence, error = naive.kd(student, teacher, temperature), absolute_error(student, teacher, temperature)
    loss = KLMAELoss(temperature, alpha)(student, teacher)
    assert loss.item() == pytest.approx(alpha * divergence + (1 - alpha) * error, rel=1e-12)


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_the_gradient_of_the_absolute_error_alone_is_bounded(logits, scale: float):
    student, teacher = logits
    student = (scale * student).requires_grad_()
    (gradient,) = torch.autograd.grad(kl_mae_loss(student, teacher, temperature=1.0, alpha=0.0), student)
    # d/ds_k sum_c |q_c - p_c| = q_k (sign_k - sum_c q_c sign_c), at most 2 q_k (1 - q_k) <= 1 / 2; the mean is over N C
    assert gradient.abs().max().item() <= 0.5 / student.numel()


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_weight_outside_0_to_1_is_refused(logits, alpha: float):
    with pytest.raises(ValueError, match=rf"alpha={alpha} must lie in \[0, 1\]"):
        KLMAELoss(alpha=alpha)
    with pytest.raises(ValueError, match=rf"alpha={alpha} must lie in \[0, 1\]"):
        kl_mae_loss(*logits, alpha=alpha)


def plain_kl_mae(m, s, t, y):
    s, t = F.log_softmax(s / 4, 1), F.log_softmax(t / 4, 1)
    return 8 * F.kl_div(s, t, reduction="batchmean", log_target=True) + F.l1_loss(s.exp(), t.exp()) / 2


PLAIN = {
    "KLMAELoss": Plain(plain_kl_mae),
}
