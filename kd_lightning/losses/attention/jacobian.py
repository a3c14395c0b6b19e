"""Jacobian matching: the student's answer depends on its input as the teacher's does."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_logits, upcast
from kd_lightning.losses.common.vectors import unit

Differentiable = list[Tensor]
"""What a term that addresses ``[logits, input]`` hands over: logits (N, C), and the input (N, ...) they depend on."""


def jacobian_loss(student: Differentiable, teacher: Differentiable) -> Tensor:
    """Squared distance of the two networks' directions of steepest ascent, averaged over the batch.

    L = 1 / N sum_n ||J_S(x_n) / ||J_S(x_n)|| - J_T(x_n) / ||J_T(x_n)|| ||^2 with J(x) = d z_k / d x, and k the class
    that the teacher takes for the likeliest

    Suraj Srinivas, Francois Fleuret: Knowledge Transfer with Jacobian Matching. ICML 2018 (arXiv:1803.00443): to match
    Jacobians is, to first order, to match what the networks say of noisy inputs. A row of the Jacobian is matched, for
    all of it would take a backward pass a class. The loss needs the second derivative of the student.

    Args:
        student: The student's logits (N, C), and its input.
        teacher: The teacher's logits, of the same shape, and its input, of the same shape as the student's.

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
        """The loss of logits and inputs; `target` is not looked at."""
        return jacobian_loss(student, teacher)


def input_gradient(scores: Tensor, inputs: Tensor, side: Literal["student", "teacher"]) -> Tensor:
    """How each sample's score depends on its input, (N, D), with a graph of its own.

    Raises:
        UsageError: It does not.
    """
    found: Tensor | None = None
    if scores.requires_grad:
        with torch.autocast(inputs.device.type, enabled=False):  # a backward pass is not cast, wherever it is made
            found = torch.autograd.grad(scores.sum(), inputs, create_graph=True, allow_unused=True)[0]
    if found is None:
        raise UsageError(
            f"the {side}'s logits do not depend on its input, as it was seen: let the term's {side} be "
            "[logits, input], and take no TeacherCache, which keeps values and no derivatives"
        )
    return upcast(found).flatten(1)


def check_differentiable(student: Differentiable, teacher: Differentiable) -> None:
    """A ValueError unless both are logits and the input they depend on, and alike."""
    for side, name in ((student, "student"), (teacher, "teacher")):
        if len(side) != 2 or not side[1].requires_grad:
            raise UsageError(
                f"the {name}'s logits and an input that derivatives can be taken by are needed: let the term's {name} "
                "be [logits, input], in a scheme of this package"
            )
    check_logits(student[0], teacher[0])
    if student[1].shape != teacher[1].shape:
        raise UsageError(
            f"the student's input {tuple(student[1].shape)} and the teacher's {tuple(teacher[1].shape)} differ: "
            "derivatives by them are compared value by value"
        )
