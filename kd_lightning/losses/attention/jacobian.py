"""Jacobian matching: align the gradients of both networks' outputs by the input."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_logits, upcast
from kd_lightning.losses.common.vectors import unit

Differentiable = list[Tensor]
"""The value of a term's address ``[logits, input]``: logits (N, C), and the input (N, ...) that they depend on."""


def jacobian_loss(student: Differentiable, teacher: Differentiable) -> Tensor:
    """Squared distance between the normalised input gradients of both networks, averaged over the batch.

    L = 1 / N sum_n ||J_S(x_n) / ||J_S(x_n)|| - J_T(x_n) / ||J_T(x_n)|| ||^2 with J(x) = d z_k / d x and k the
    teacher's most likely class

    Suraj Srinivas, Francois Fleuret: Knowledge Transfer with Jacobian Matching. ICML 2018 (arXiv:1803.00443).
    Matching Jacobians is, to first order, matching the networks' outputs on noisy inputs. Only one row of the Jacobian
    is matched: the whole would take a backward pass for each class. Training needs the second derivative of the
    student.

    Args:
        student: The student's logits (N, C) and its input (N, ...).
        teacher: The teacher's logits (N, C) and its input, of the shape of the student's.

    Raises:
        UsageError: The shapes differ, or logits do not depend on their input.

    Example:
        >>> x = torch.ones(2, 3, requires_grad=True)
        >>> student, teacher = x @ torch.ones(3, 2), x @ torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
        >>> jacobian_loss([student, x], [teacher, x])
        tensor(0.8453)
    """
    check_differentiable(student, teacher)
    likeliest = teacher[0].argmax(dim=1, keepdim=True)
    by_student = unit(input_gradient(student[0].gather(1, likeliest), student[1], "student"), shortest=1e-12)
    by_teacher = unit(input_gradient(teacher[0].gather(1, likeliest), teacher[1], "teacher"), shortest=1e-12)
    return (by_student - by_teacher).square().sum(dim=1).mean()


class JacobianLoss(DistillationLoss):
    """Jacobian matching (Srinivas, Fleuret 2018, arXiv:1803.00443); see `jacobian_loss`.

    Its term addresses ``student: [logits, input]`` and ``teacher: [logits, input]``.
    """

    differentiates_input = True

    def forward(self, student: Differentiable, teacher: Differentiable, target: Tensor | None = None) -> Tensor:
        """Compute the loss of logits and inputs; `target` is unused."""
        return jacobian_loss(student, teacher)


def input_gradient(scores: Tensor, inputs: Tensor, side: Literal["student", "teacher"]) -> Tensor:
    """Differentiate each sample's score by its input, with a graph for second derivatives.

    Args:
        scores: One score a sample, or several, whose sum is differentiated; (N, ...).
        inputs: The inputs (N, ...), of D values a sample.
        side: The network's name in the message of an error.

    Returns:
        The gradients, (N, D), in at least single precision.

    Raises:
        UsageError: The scores do not depend on the inputs.
    """
    found: Tensor | None = None
    if scores.requires_grad:
        with torch.autocast(inputs.device.type, enabled=False):  # never cast a backward pass
            found = torch.autograd.grad(scores.sum(), inputs, create_graph=True, allow_unused=True)[0]
    if found is None:
        raise UsageError(
            f"the {side}'s logits do not depend on its recorded input: set the term's {side} to [logits, input], and "
            "remove TeacherCache if there is one, because it stores values without derivatives"
        )
    return upcast(found).flatten(1)


def check_differentiable(student: Differentiable, teacher: Differentiable) -> None:
    """Check that each side is logits with a differentiable input, and that the shapes of both sides agree.

    Raises:
        UsageError: A side is not ``[logits, input]``, its input requires no gradient, or the shapes differ.
    """
    for side, name in ((student, "student"), (teacher, "teacher")):
        if len(side) != 2 or not side[1].requires_grad:
            raise UsageError(
                f"the loss needs the {name}'s logits and an input that requires a gradient: set the term's {name} to "
                "[logits, input], in a scheme of this package"
            )
    check_logits(student[0], teacher[0])
    if student[1].shape != teacher[1].shape:
        raise UsageError(
            f"the student's input {tuple(student[1].shape)} and the teacher's {tuple(teacher[1].shape)} differ in "
            "shape: give both networks the same view, because their derivatives are compared value by value"
        )
