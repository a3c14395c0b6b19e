"""Samples of label -100, which have none, in every loss on logits that needs class indices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kd_lightning import losses
from kd_lightning.core.loss import loss_trait
from tests.losses.formulas import FORMULAS
from tests.losses.test_every_loss import LABELLED
from tests.losses.test_formulas import networks

NEEDING = [name for name in FORMULAS if name in LABELLED or name == "AttentiveEnsembleLoss"]
NEEDING.remove("BinaryTaskLoss")  # its labels are other ones
KEEPING = {"CAMKDLoss", "AttentiveEnsembleLoss"}
"""Losses whose teachers' part counts every sample."""


def value_and_gradient(name: str, student: Tensor, teacher: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    student = student.detach().requires_grad_()
    value = FORMULAS[name].build()(student, teacher, label)
    return value.detach(), torch.autograd.grad(value, student)[0]


def test_the_losses_that_need_class_indices_are_found():
    assert {"DKDLoss", "TfKDLoss", "WSLDLoss", "TaskLoss", *KEEPING} <= set(NEEDING)
    declared = {name for name in NEEDING if loss_trait(FORMULAS[name].build(), "skips_unlabeled")}
    assert declared == {"DKDLoss", "TfKDLoss", "WSLDLoss"}  # a task loss declares its kind of label


@pytest.mark.parametrize("name", NEEDING)
def test_the_mean_is_over_the_samples_with_a_label(name: str):
    student, teacher, label = networks(10, 12, 2.0, 3.0, 1.0, FORMULAS[name].teachers)
    counts = torch.arange(12) % 3 > 0
    value, gradient = value_and_gradient(name, student, teacher, label.where(counts, -100))
    assert value.isfinite()
    if name in KEEPING:
        assert gradient.any(dim=1).all()
        return
    expected, true_gradient = value_and_gradient(name, student[counts], teacher[counts], label[counts])
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient[counts], true_gradient)
    assert not gradient[~counts].any()


@pytest.mark.parametrize("name", NEEDING)
def test_without_any_label_the_loss_is_0_with_a_graph(name: str):
    student, teacher, label = networks(10, 12, 2.0, 3.0, 1.0, FORMULAS[name].teachers)
    value, gradient = value_and_gradient(name, student, teacher, torch.full_like(label, -100))
    assert value.isfinite()
    assert gradient.isfinite().all()
    if name not in KEEPING:
        assert value == 0
        assert not gradient.any()


@pytest.mark.parametrize("name", NEEDING)
def test_other_indices_that_are_no_class_are_refused(name: str):
    student, teacher, label = networks(10, 12, 2.0, 3.0, 1.0, FORMULAS[name].teachers)
    for wrong in (-1, 10):
        label[0] = wrong
        with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
            FORMULAS[name].build()(student, teacher, label)


def test_samples_without_a_label_are_one_class_to_contrasts_within_a_batch():
    s, t = (torch.nn.functional.normalize(torch.randn(4, 5), dim=1) for _ in range(2))
    unlabeled = losses.in_batch_crd_loss(s, t, torch.tensor([-100, 0, -100, 1]))
    assert torch.equal(unlabeled, losses.in_batch_crd_loss(s, t, torch.tensor([7, 0, 7, 1])))
