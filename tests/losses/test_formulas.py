"""Every loss on logits in float32 against its formula in float64, for many classes of which the networks are sure.

The shared tests compare float32 with float64 of the same code, which a floor or an added constant passes.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning import losses
from kd_lightning.core.loss import loss_trait
from tests.losses.every import CASES, build
from tests.losses.formulas import FORMULAS
from tests.losses.test_every_loss import ON_LOGITS, SOFTENED

SIZES = [(10, 32, 14, 16, 2.0), (100, 64, 12, 16, 1.5), (1000, 32, 14, 16, 2.0), (1000, 48, 18, 20, 2.5)]
"""Classes, samples, the margins by which student and teacher prefer a sample's class, and the other logits' spread."""


TOLERANCES = {"WSLDLoss": 5e-3}
"""Of the value, 1e-4 if not given: the authors add 1e-7 to a cross-entropy that is as small."""


def networks(
    classes: int, samples: int, student_margin: float, teacher_margin: float, spread: float, teachers: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits and labels of networks as they are late in training; one label of three is another one's."""
    generator = torch.Generator().manual_seed(classes + samples)
    y = torch.randint(classes, (samples,), generator=generator)
    shape = (samples, max(teachers, 1), classes)
    teacher = spread * torch.randn(shape, generator=generator)
    student = (teacher[:, 0] + spread / 2 * torch.randn(shape[::2], generator=generator)).contiguous()
    student[torch.arange(samples), y] += student_margin
    teacher[torch.arange(samples), :, y] += teacher_margin
    label = torch.where(torch.arange(samples) % 3 == 0, (y + 1) % classes, y)
    return student, teacher if teachers else teacher[:, 0], label


def value_and_gradient(loss, student: Tensor, *arguments) -> tuple[Tensor, Tensor]:
    student = student.detach().requires_grad_()
    value = loss(student, *arguments)
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach().double(), gradient.double().flatten()


def arguments(name: str, temperature: float) -> dict[str, float]:
    try:
        FORMULAS[name].build(temperature=temperature)
    except TypeError:
        return {}
    return {"temperature": temperature}


def test_every_loss_on_logits_has_a_formula():
    on_logits = set(ON_LOGITS) | {name for name in CASES if loss_trait(build(name), "takes_rows")}
    of_another_shape = {name for name in on_logits if name.partition(" of ")[0] in FORMULAS}
    assert on_logits - of_another_shape == set()
    assert {name for name in SOFTENED if name in FORMULAS} <= {name for name in FORMULAS if arguments(name, 2.0)}


CALLS = [(name, at) for name in FORMULAS for at in (1.0, 4.0) if at == 1 or arguments(name, at)]


@pytest.mark.parametrize(("name", "temperature"), CALLS)
@pytest.mark.parametrize("size", SIZES, ids=[f"{size[0]} classes, margin {size[1]}" for size in SIZES])
def test_value_and_gradient_in_float32_are_those_of_the_formula(name: str, temperature: float, size):
    given = {"classes": size[0]} if name == "ModalityGraphLoss" else arguments(name, temperature)
    formula = FORMULAS[name]
    student, teacher, label = networks(*size, teachers=formula.teachers)
    value, gradient = value_and_gradient(formula.build(**given), student, teacher, label)
    expected, true_gradient = value_and_gradient(
        lambda s, t, y: formula.form(s, t, y, temperature), student.double(), teacher.double(), label
    )
    assert (value - expected).abs() <= TOLERANCES.get(name, 1e-4) * expected.abs()
    # of the gradient the direction and the length
    assert torch.cosine_similarity(gradient, true_gradient, dim=0) > 0.9999
    assert (gradient.norm() / true_gradient.norm() - 1).abs() < 1e-3


# ---- masked classes

RAW = {"LogitMSELoss", "LogitL1Loss", "ModalityGraphLoss"}
"""Losses that compare logits as they are, so that an infinite one is infinitely far."""
INFINITE = {"JSDLoss, reverse"}
"""The student's divergence from a teacher that gives a class probability 0."""
MASKED = [
    (name, at) for name in FORMULAS if name not in RAW for at in (1.0, 4.0, 20.0) if at == 1 or arguments(name, at)
]


def masked(teachers: int, classes: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits and labels: no teacher knows class 3, none the class 4 of the first sample, one not class 5."""
    student, teacher, label = networks(classes, 12, 2.0, 3.0, 1.0, teachers)
    label = torch.where((label >= 3) & (label <= 5), 0, label)
    teacher = teacher.clone()
    teacher[..., 3] = -math.inf
    teacher[0, ..., 4] = -math.inf
    if teachers:
        teacher[:, 1, 5] = -math.inf
    return student, teacher, label


@pytest.mark.parametrize(("name", "temperature"), MASKED)
def test_a_class_that_the_teacher_masks_contributes_nothing(name: str, temperature: float):
    formula = FORMULAS[name]
    student, teacher, label = masked(formula.teachers)
    loss = formula.build(**arguments(name, temperature))
    value, gradient = value_and_gradient(loss, student, teacher, label)
    if name in INFINITE:
        assert value == math.inf
        return
    expected, true_gradient = value_and_gradient(
        lambda s, t, y: formula.form(s, t, y, temperature), student.double(), teacher.double(), label
    )
    assert expected.isfinite()
    assert (value - expected).abs() <= 1e-4 * expected.abs()
    assert (gradient - true_gradient).norm() <= 1e-3 * true_gradient.norm()


def test_a_learned_temperature_has_a_finite_gradient_where_the_teacher_masks():
    student, teacher, _ = masked(0)
    gradients: list[Tensor] = []
    for shown in (teacher, teacher.clamp(min=-1e4)):
        loss = FORMULAS["CTKDLoss"].build()
        loss(student, shown).backward()
        gradients.append(loss.theta.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0] != 0


@pytest.mark.parametrize("name", [name for name in FORMULAS if name not in RAW | INFINITE])
def test_gradients_pass_through_a_teacher_that_masks(name: str):
    """As those of a generator whose images a masked teacher judges."""
    student, teacher, label = masked(FORMULAS[name].teachers)
    teacher.requires_grad_()
    loss = FORMULAS[name].build()(student.requires_grad_(), teacher, label)
    (gradient,) = torch.autograd.grad(loss, teacher, allow_unused=True)
    if gradient is not None:
        assert gradient.isfinite().all()
        assert not gradient[teacher == -math.inf].any()


def test_it_is_torchs_divergence_where_the_teacher_masks():
    student, teacher, _ = masked(0)
    for temperature in (1.0, 8.0, 20.0):
        found = value_and_gradient(lambda s, t, at=temperature: losses.kd_loss(s, t, at), student, teacher)
        expected = value_and_gradient(
            lambda s, t, at=temperature: (
                at**2 * F.kl_div((s / at).log_softmax(1), (t / at).softmax(1), reduction="batchmean")
            ),
            student,
            teacher,
        )
        for ours, torchs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["DKDLoss", "WSLDLoss", "CAMKDLoss", "EnsembleLoss"])
def test_a_teacher_may_mask_the_labels_class(name: str):
    student, teacher, label = masked(FORMULAS[name].teachers)
    label[0], label[1] = 4, 5  # of no teacher, and of all but one
    value, gradient = value_and_gradient(FORMULAS[name].build(), student, teacher, label)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert gradient.any()
