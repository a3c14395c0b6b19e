import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kd_lightning.losses import KDLoss, kd_loss, kl_mae_loss
from kd_lightning.losses.common.divergence import MAX_PLAIN_TEMPERATURE, mean_divergence
from tests.losses import naive
from tests.losses.plain import Plain, kd


def logits(rows: int, classes: int, scale: float = 3.0, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64)).to(dtype)


def log_probabilities(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return (student.float() / temperature).log_softmax(dim=1), (teacher.float() / temperature).log_softmax(dim=1)


def kl_mae_alone(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Another loss with the same divergence: alpha=1 leaves the KL part alone."""
    return kl_mae_loss(student, teacher, temperature, alpha=1.0)


def softened(teacher: Tensor, temperature: float) -> Tensor:
    """The soft targets p, from the gradient T (1 / C - p) / N of a uniform student."""
    student = torch.zeros_like(teacher, requires_grad=True)
    (gradient,) = torch.autograd.grad(KDLoss(temperature)(student, teacher), student)
    rows, classes = teacher.shape
    return 1 / classes - gradient * rows / temperature


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0, 8.0, 8.1, 20.0, 1000.0])
@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (7, 10), (3, 100)])
@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
def test_value_and_gradient_are_those_of_naive_loops(temperature: float, rows: int, classes: int, scale: float):
    student = logits(rows, classes, scale, seed=1).requires_grad_()
    teacher = logits(rows, classes, scale, seed=2)
    loss = KDLoss(temperature)(student, teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    expected = torch.tensor(naive.kd_gradient(student.detach(), teacher, temperature), dtype=torch.float64)
    assert loss.item() == pytest.approx(naive.kd(student.detach(), teacher, temperature), rel=1e-9, abs=1e-9)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_it_is_the_divergence_from_the_teacher_and_not_to_it():
    student, teacher = logits(5, 10, seed=1), logits(5, 10, seed=2)
    forward, reverse = naive.kd(student, teacher, 2.0), naive.kd(teacher, student, 2.0)
    assert abs(forward - reverse) > 0.1 * forward
    assert kd_loss(student, teacher, 2.0).item() == pytest.approx(forward)


def test_at_temperature_1_it_teaches_the_plain_softmax():
    teacher = logits(5, 10)
    torch.testing.assert_close(
        softened(teacher, 1.0), torch.tensor([naive.softmax(row) for row in teacher.tolist()]).double()
    )


def test_as_the_temperature_goes_to_0_it_teaches_the_one_hot_argmax():
    teacher = logits(5, 10)
    one_hot = torch.nn.functional.one_hot(teacher.argmax(dim=1), 10).double()
    distances = [
        (softened(teacher, temperature) - one_hot).abs().max().item() for temperature in (1.0, 0.1, 0.01, 0.001)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.1
    assert distances[-1] < 1e-6


def test_as_the_temperature_goes_to_infinity_it_teaches_the_uniform_distribution():
    teacher = logits(5, 10)
    distances = [(softened(teacher, 10.0**power) - 0.1).abs().max().item() for power in range(6)]
    assert distances[0] > 0.1
    for nearer, farther in zip(distances[2:], distances[1:], strict=False):
        assert nearer == pytest.approx(farther / 10, rel=0.5)  # it goes with 1 / T


def half_squared_distance(student: Tensor, teacher: Tensor) -> float:
    """Half the squared distance of centred logits over C, averaged over samples: Hinton 2015, equation 4."""
    total = 0.0
    for s, t in naive.pairs(student, teacher):
        s_mean, t_mean = sum(s) / len(s), sum(t) / len(t)
        total += sum((s_c - s_mean - t_c + t_mean) ** 2 for s_c, t_c in zip(s, t, strict=True)) / (2 * len(s))
    return total / len(student)


def test_as_the_temperature_goes_to_infinity_it_is_half_the_squared_distance_of_the_centred_logits_over_c():
    student, teacher = logits(5, 10, seed=1) + 7, logits(5, 10, seed=2)  # uncentred: the 7 must not count
    limit = half_squared_distance(student, teacher)
    errors = [abs(kd_loss(student, teacher, 10.0**power).item() / limit - 1) for power in (2, 3, 4, 5)]
    assert errors[-1] < 1e-4
    for nearer, farther in zip(errors[1:], errors, strict=False):
        assert nearer == pytest.approx(farther / 10, rel=0.5)


@pytest.mark.parametrize("scale", [0.1, 3.0])
@pytest.mark.parametrize("temperature", [8.1, 20.0, 100.0, 1000.0])
def test_float32_keeps_its_digits_at_high_temperatures(temperature: float, scale: float):
    student, teacher = (logits(16, 100, scale, seed, torch.float32) for seed in (1, 2))
    expected = naive.kd(student, teacher, temperature)
    assert kd_loss(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-3)
    assert kd_loss(teacher, teacher, temperature).item() == 0


@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
def test_both_forms_of_the_divergence_agree_at_the_threshold(scale: float):
    student, teacher = logits(16, 10, scale, seed=1), logits(16, 10, scale, seed=2)
    below = kd_loss(student, teacher, MAX_PLAIN_TEMPERATURE)
    above = kd_loss(student, teacher, math.nextafter(MAX_PLAIN_TEMPERATURE, math.inf))
    torch.testing.assert_close(above, below, rtol=1e-12, atol=0)


@pytest.mark.parametrize("side", [0.0, math.inf], ids=["plain", "corrected"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.3, 3.0, 30.0])
def test_on_both_sides_of_the_threshold_value_and_gradient_keep_their_digits(side, dtype, scale: float):
    temperature = MAX_PLAIN_TEMPERATURE if side == 0 else math.nextafter(MAX_PLAIN_TEMPERATURE, side)
    student, teacher = logits(16, 10, scale, 1, dtype).requires_grad_(), logits(16, 10, scale, 2, dtype)
    losses = [
        KDLoss(temperature)(student, teacher),
        mean_divergence(*log_probabilities(student, teacher, temperature), temperature) * temperature**2,
    ]
    (gradient,) = torch.autograd.grad(losses[0], student)
    as_given = student.detach().double(), teacher.double()
    for loss in losses:
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(naive.kd(*as_given, temperature), rel=2e-4)
    expected = torch.tensor(naive.kd_gradient(*as_given, temperature), dtype=torch.float64)
    step = torch.finfo(dtype).eps * expected.abs().max().item()  # gradients are rounded to the logits' type
    torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=max(step, 2e-6))


def test_up_to_the_threshold_it_is_torchs_kl_div_bit_for_bit_and_above_it_is_corrected():
    student, teacher = (logits(64, 10, 0.02, seed, torch.float32) for seed in (1, 2))
    above = math.nextafter(MAX_PLAIN_TEMPERATURE, math.inf)

    def plain(temperature: float) -> Tensor:
        sides = log_probabilities(student, teacher, temperature)
        return functional.kl_div(*sides, reduction="batchmean", log_target=True) * temperature**2

    for loss in (kd_loss, kl_mae_alone):
        assert torch.equal(loss(student, teacher, 1.0), plain(1.0))
        assert torch.equal(loss(student, teacher, MAX_PLAIN_TEMPERATURE), plain(MAX_PLAIN_TEMPERATURE))
        expected = naive.kd(student.double(), teacher.double(), above)
        errors = [abs(found.item() / expected - 1) for found in (loss(student, teacher, above), plain(above))]
        assert errors[0] < 1e-4
        assert errors[1] > 10 * errors[0]  # the noise that the correction takes away


@pytest.mark.parametrize("temperature", [0.01, 1.0, 1000.0])
def test_it_is_finite_if_softened_logits_and_loss_are_representable(temperature: float):
    student = (1e34 * logits(4, 10, 1.0, seed=1)).float().requires_grad_()
    loss = kd_loss(student, (1e34 * logits(4, 10, 1.0, seed=2)).float(), temperature)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_the_gradient_is_exact_where_log_probabilities_differ_by_exactly_1():
    temperature = 10**1.5
    student = torch.tensor([[temperature, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, temperature]])
    (gradient,) = torch.autograd.grad(kd_loss(student, teacher, temperature), student)
    expected = torch.tensor(naive.kd_gradient(student.detach(), teacher, temperature))
    torch.testing.assert_close(gradient, expected)


def naive_asymmetric(student: Tensor, teacher: Tensor, temperature: float, teacher_temperature: float) -> float:
    """T^2 KL(softmax(t / T_t) || softmax(s / T)), averaged over samples."""
    total = 0.0
    for s, t in naive.pairs(student, teacher):
        log_q, log_p = naive.log_softmax(s, temperature), naive.log_softmax(t, teacher_temperature)
        total += math.fsum(math.exp(p_c) * (p_c - q_c) for p_c, q_c in zip(log_p, log_q, strict=True))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0, 8.0, 8.1, 20.0, 1000.0])
@pytest.mark.parametrize("teacher_temperature", [0.05, 2.0, 8.1, 500.0])
@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
def test_the_teacher_can_have_another_temperature(temperature: float, teacher_temperature: float, scale: float):
    student, teacher = logits(7, 10, scale, seed=1).requires_grad_(), logits(7, 10, scale, seed=2)
    loss = KDLoss(temperature, teacher_temperature)(student, teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    expected = naive_asymmetric(student.detach(), teacher, temperature, teacher_temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    wanted = [
        [
            temperature * (q - p) / 7
            for q, p in zip(naive.softmax(s, temperature), naive.softmax(t, teacher_temperature), strict=True)
        ]
        for s, t in naive.pairs(student.detach(), teacher)
    ]
    torch.testing.assert_close(gradient, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("temperature", [1.0, 25.0, 1000.0])
@pytest.mark.parametrize("teacher_temperature", [0.05, 2.0, 1000.0])
def test_float32_keeps_its_digits_at_unequal_temperatures(dtype, temperature: float, teacher_temperature: float):
    student, teacher = logits(16, 10, 3.0, 1, dtype).requires_grad_(), logits(16, 10, 3.0, 2, dtype)
    loss = kd_loss(student, teacher, temperature, teacher_temperature)
    expected = naive_asymmetric(student.detach().double(), teacher.double(), temperature, teacher_temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-3)
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


@pytest.mark.parametrize("temperature", [0.1, 4.0, 50.0])
def test_without_a_teacher_temperature_both_have_the_students(temperature: float):
    student, teacher = logits(7, 10, seed=1, dtype=torch.float32), logits(7, 10, seed=2, dtype=torch.float32)
    loss = KDLoss(3.0)
    loss.temperature = temperature
    same = kd_loss(student, teacher, temperature, temperature)
    assert torch.equal(loss(student, teacher), same)
    own = KDLoss(3.0, teacher_temperature=2.0)
    own.temperature = temperature
    assert torch.equal(own(student, teacher), kd_loss(student, teacher, temperature, 2.0))
    assert not torch.equal(own(student, teacher), same)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_an_invalid_teacher_temperature_is_refused(temperature: float):
    with pytest.raises(ValueError, match=f"teacher_temperature={temperature} must be a finite number above 0"):
        KDLoss(4.0, temperature)
    with pytest.raises(ValueError, match=f"teacher_temperature={temperature} must be a finite number above 0"):
        kd_loss(logits(2, 3), logits(2, 3), 4.0, temperature)


PLAIN = {
    "KDLoss": Plain(kd),
}
