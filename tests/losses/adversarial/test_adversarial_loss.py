import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning import Classifier, OfflineDistiller, Term, losses
from kd_lightning.losses import (
    AdversarialLoss,
    LeastSquaresAdversarialLoss,
    adversarial_loss,
    discrimination_loss,
    least_squares_discrimination_loss,
)
from kd_lightning.networks import ConvDiscriminator, Discriminator
from tests import toys
from tests.losses.case import Case
from tests.losses.plain import STUDENT, TEACHER, N, Plain


def conditional() -> AdversarialLoss:
    torch.manual_seed(0)
    return AdversarialLoss(Discriminator(10, width=12, classes=10), classes=10)


def of_maps() -> AdversarialLoss:
    torch.manual_seed(0)
    return AdversarialLoss(ConvDiscriminator(5, width=4), nn.Conv2d(3, 5, 1))


def least_squares() -> LeastSquaresAdversarialLoss:
    torch.manual_seed(0)
    return LeastSquaresAdversarialLoss(ConvDiscriminator(5, width=4), nn.Conv2d(3, 5, 1))


MAPS = {"student": (6, 3, 4, 4), "teacher": (6, 5, 4, 4), "minimum": "elsewhere", "kinked": True}
CASES = {
    "AdversarialLoss": Case(
        conditional,
        minimum="elsewhere",
        kinked=True,
        wrong=[((6, 10), (6, 5)), ((6, 10), (5, 10)), ((6, 10), (6, 10, 1))],
    ),
    "AdversarialLoss of maps": Case(of_maps, **MAPS),
    "LeastSquaresAdversarialLoss": Case(least_squares, **MAPS),
}


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def named(verdict: list[list[float]], target: list[int]) -> float:
    """Mean of -log softmax at the class."""
    shares = [math.exp(row[1 + y]) / sum(math.exp(v) for v in row[1:]) for row, y in zip(verdict, target, strict=True)]
    return -sum(math.log(share) for share in shares) / len(shares)


@pytest.mark.parametrize("classes", [0, 2, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_both_losses_are_the_naive_cross_entropies(classes, smoothing):
    fake, real, y = (
        rows(5, 1 + classes, seed=1),
        rows(5, 1 + classes, seed=2),
        torch.tensor([0, 2, 1, 1, 0]) % (classes or 1),
    )
    target = y if classes else None
    misled = -sum(math.log(sigmoid(row[0])) for row in fake.tolist()) / 5
    told = -sum(
        math.log(sigmoid(t[0])) + (1 - smoothing) * math.log(1 - sigmoid(s[0])) + smoothing * math.log(sigmoid(s[0]))
        for s, t in zip(fake.tolist(), real.tolist(), strict=True)
    ) / 5  # fmt: skip
    classified = [named(side.tolist(), y.tolist()) if classes else 0.0 for side in (fake, real)]
    assert adversarial_loss(fake, target).item() == pytest.approx(misled + classified[0], rel=1e-12)
    found = discrimination_loss(fake, real, target, smoothing).item()
    assert found == pytest.approx(told + sum(classified), rel=1e-12)


def test_both_least_squares_losses_equal_their_formula():
    loss = least_squares().double()
    student, teacher = rows(4, 3, 4, 4, seed=1), rows(4, 5, 4, 4, seed=2)
    own = [sigmoid(v) for v in loss.discriminator(loss.connector(student)).flatten().tolist()]
    other = [sigmoid(v) for v in loss.discriminator(teacher).flatten().tolist()]
    assert loss(student, teacher).item() == pytest.approx(sum((1 - p) ** 2 for p in own) / 4, rel=1e-12)
    told = (sum(p**2 for p in own) + sum((1 - p) ** 2 for p in other)) / 4
    assert loss.discriminator_loss(student, teacher).item() == pytest.approx(told, rel=1e-12)
    assert least_squares_discrimination_loss(rows(4, 1), rows(4, 1, seed=1)).shape == ()


@pytest.mark.parametrize("build", [conditional, of_maps, least_squares])
def test_the_discriminators_loss_has_gradients_for_the_discriminator_alone(build):
    loss = build().double()
    case = CASES[
        {conditional: "AdversarialLoss", of_maps: "AdversarialLoss of maps"}.get(build, "LeastSquaresAdversarialLoss")
    ]
    student, teacher = rows(*case.student, seed=1).requires_grad_(), rows(*case.teacher, seed=2).requires_grad_()
    loss.discriminator_loss(student, teacher, case.target()).backward()
    assert student.grad is None
    assert teacher.grad is None
    assert all(parameter.grad is None for parameter in loss.connector.parameters())
    assert all(parameter.grad is not None for parameter in loss.discriminator.parameters())


def test_a_trained_discriminator_separates_two_distributions():
    loss = conditional()
    optimizer = torch.optim.Adam(loss.discriminator.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        y = torch.randint(10, (64,), generator=generator)
        s, t = torch.randn(2, 64, 10, generator=generator)
        t = t + 5 * torch.nn.functional.one_hot(y, 10)
        told = loss.discriminator_loss(s, t, y)
        optimizer.zero_grad()
        told.backward()
        optimizer.step()
    real, fake = (loss.discriminator(side)[:, 0] for side in (t, s))
    assert (real > 0).float().mean() > 0.9
    assert (fake < 0).float().mean() > 0.9


def test_invalid_inputs_are_refused():
    with pytest.raises(ValueError, match=r"smoothing=0.5 must be below 0.5"):
        AdversarialLoss(Discriminator(10), smoothing=0.5)
    with pytest.raises(
        ValueError, match=r"maps features \(4, 10\) to \(4, 1\), but with classes=10 it must be \(N, 11\)"
    ):
        AdversarialLoss(Discriminator(10), classes=10)(torch.zeros(4, 10), None, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(
        ValueError, match=r"\(4, 3, 4, 4\) and teacher features \(4, 5, 4, 4\) .* give the loss a connector"
    ):
        AdversarialLoss(ConvDiscriminator(3)).discriminator_loss(torch.zeros(4, 3, 4, 4), torch.zeros(4, 5, 4, 4))
    with pytest.raises(ValueError, match=r"a verdict \(4, 11\) has logits of classes but there is no target"):
        adversarial_loss(torch.zeros(4, 11))
    with pytest.raises(ValueError, match=r"a verdict \(4,\) must be \(N, 1\)"):
        adversarial_loss(torch.zeros(4))
    with pytest.raises(ValueError, match="classes=-1 must be at least 0"):
        Discriminator(10, classes=-1)


def test_a_scheme_with_one_optimizer_refuses_a_discriminator(tmp_path):
    terms = {"adversarial": Term(conditional())}
    offline = OfflineDistiller(toys.network(8, seed=1), toys.network(16, seed=2), terms)
    alone = Classifier(toys.network(8), {"adversarial": Term(conditional(), teacher=None)})
    for learner in (offline, alone):
        with pytest.raises(ValueError, match=r"'adversarial' has a discriminator, .* use AdversarialDistiller"):
            toys.trainer(tmp_path).fit(learner, toys.data())


def plain_adversarial(m, s, t, y):
    verdict = m.discriminator(s)
    return F.softplus(-verdict[:, 0]).mean() + F.cross_entropy(verdict[:, 1:], y)


PLAIN = {
    "AdversarialLoss": Plain(
        plain_adversarial,
        (N, 10),
        (N, 10),
        build=lambda: losses.AdversarialLoss(Discriminator(10, classes=10), classes=10),
    ),
    "LeastSquaresAdversarialLoss": Plain(
        lambda m, s, t, y: (1 - m.discriminator(m.connector(s)).sigmoid()).square().mean(),
        STUDENT,
        TEACHER,
        build=lambda: losses.LeastSquaresAdversarialLoss(ConvDiscriminator(128), nn.Conv2d(32, 128, 1)),
    ),
}
