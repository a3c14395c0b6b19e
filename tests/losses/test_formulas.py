"""Every loss on logits in float32 against its formula in float64, for many classes of which the networks are sure.

The shared tests compare float32 with float64 of the same code, which a floor or an added constant passes.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

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
