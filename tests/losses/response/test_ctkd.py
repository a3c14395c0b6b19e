from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kd_lightning import OfflineDistiller, Term
from kd_lightning.callbacks import Constant, TemperatureSchedule
from kd_lightning.losses import CTKDLoss, ctkd_loss
from tests import toys
from tests.losses import naive
from tests.losses.plain import Plain, kd


def logits(seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def temperature(theta: float, lowest: float = 1.0, width: float = 20.0) -> float:
    return lowest + width / (1 + math.exp(-theta))


@pytest.mark.parametrize("theta", [-30.0, -2.0, 1.0, 30.0])
def test_value_and_the_students_gradient_are_hintons_at_the_learned_temperature(theta):
    student, teacher = logits(1).requires_grad_(), logits(2)
    loss = CTKDLoss(lowest=2.0, width=5.0).double()
    loss.theta.data.fill_(theta)
    value = loss(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    at = temperature(theta, 2.0, 5.0)
    assert 2 <= at <= 7
    assert loss.temperature.item() == pytest.approx(at, rel=1e-12)
    assert not loss.temperature.requires_grad  # it is logged
    assert value.item() == pytest.approx(naive.kd(student.detach(), teacher, at), rel=1e-9)
    expected = torch.tensor(naive.kd_gradient(student.detach(), teacher, at), dtype=torch.float64)
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-12)


def test_nearly_equal_logits_keep_their_digits_at_a_high_temperature():
    teacher = logits(2).float()
    student = teacher + 1e-2 * logits(1).float()
    loss = CTKDLoss(width=200.0)
    loss.theta.data.fill_(5.0)
    exact = loss.double()(student.double(), teacher.double()).item()
    assert loss.float()(student, teacher).item() == pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize("reversal", [0.0, 0.3, 1.0])
def test_the_temperatures_gradient_is_the_reverse_of_the_losss(reversal):
    student, teacher, theta = logits(1), logits(2), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(ctkd_loss(student, teacher, theta, reversal), theta)
    step = 1e-5
    above, below = (naive.kd(student, teacher, temperature(0.5 + sign * step)) for sign in (1, -1))
    slope = (above - below) / (2 * step)
    assert found.item() == pytest.approx(-reversal * slope, rel=1e-6)
    at = 1 + 20 * theta.sigmoid()  # and by autograd, unreversed
    log_student, log_teacher = (student / at).log_softmax(dim=1), (teacher / at).log_softmax(dim=1)
    plain = (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1).mean() * at**2
    (unreversed,) = torch.autograd.grad(plain, theta)
    torch.testing.assert_close(found, -reversal * unreversed)


@pytest.mark.parametrize("reversal", [0.3, 1.0])
@pytest.mark.parametrize("theta", [-1.0, 0.5])
def test_the_temperatures_gradient_for_two_classes_is_that_computed_by_hand(theta, reversal):
    z, at = 4.0, temperature(theta)
    p, share = 1 / (1 + math.exp(-z / at)), 1 / (1 + math.exp(-theta))
    kl = math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)  # from a uniform student
    slope = (2 * at * kl - p * (1 - p) * z**2 / at) * 20 * share * (1 - share)  # dL/dT dT/dtheta
    learned = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[z, 0.0]], dtype=torch.float64)
    (found,) = torch.autograd.grad(ctkd_loss(torch.zeros_like(teacher), teacher, learned, reversal), learned)
    assert found.item() == pytest.approx(-reversal * slope, rel=1e-6)


def learner(**changes: float) -> OfflineDistiller:
    terms = {"kd": Term(CTKDLoss(**changes))}
    return OfflineDistiller(toys.network(seed=1), toys.network(16, seed=2), terms)


def test_the_optimizer_trains_it_and_its_step_increases_the_loss():
    made = learner()
    loss = made.terms["kd"].loss
    images, student, teacher = torch.rand(16, 3, 28, 28), logits(1), logits(2)
    assert loss.temperature.item() == pytest.approx(temperature(1.0))
    before = loss(student, teacher).item()
    optimizer = torch.optim.SGD([loss.theta], lr=0.1)
    loss(student, teacher).backward()
    optimizer.step()
    assert loss(student, teacher).item() > before
    assert any(
        parameter is loss.theta for group in made.configure_optimizers().param_groups for parameter in group["params"]
    )
    made.compute_losses((images, torch.zeros(16, dtype=torch.long)))["kd"].backward()


def test_it_is_logged_as_a_number_and_no_schedule_changes_it(tmp_path):
    made = learner()
    trainer = toys.trainer(tmp_path, max_epochs=1)
    trainer.fit(made, toys.data())
    logged = trainer.callback_metrics["temperature/kd"].item()
    assert 1 < logged < 21
    assert logged != pytest.approx(temperature(1.0), abs=1e-6)
    with pytest.raises(ValueError, match="no loss of kd has a temperature: name another term"):
        toys.trainer(tmp_path, TemperatureSchedule(Constant(2.0)), max_epochs=1).fit(learner(), toys.data())


@pytest.mark.parametrize("name", ["lowest", "width"])
def test_invalid_bounds_and_strengths_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0.0 must be a finite number above 0"):
        CTKDLoss(**{name: 0.0})
    with pytest.raises(ValueError, match=r"reversal=2\.0 must lie in"):
        CTKDLoss(reversal=2.0)


def plain_ctkd(m, s, t, y):
    temperature = 1 + 20 * (2 * m.theta.detach() - m.theta).sigmoid()
    return kd(m, s, t, y, temperature)


PLAIN = {
    "CTKDLoss": Plain(plain_ctkd),
}
