"""Gradient-based attention transfer: match the gradients of both networks' losses by the input."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.attention.jacobian import Differentiable, check_differentiable, input_gradient
from kd_lightning.losses.common.checks import upcast
from kd_lightning.losses.common.classes import check_classes


def gradient_attention_loss(student: Differentiable, teacher: Differentiable, target: Tensor) -> Tensor:
    """Half the squared distance between the input gradients of both networks' cross-entropies, averaged.

    L = 1 / (2 N) sum_n ||J_S(x_n) - J_T(x_n)||^2 with J(x) = d CE(z(x), y) / d x

    Sergey Zagoruyko, Nikos Komodakis: Paying More Attention to Attention. ICLR 2017 (arXiv:1612.03928), equation 4.
    Training needs the second derivative of the student.

    Args:
        student: The student's logits (N, C) and its input (N, ...).
        teacher: The teacher's logits (N, C) and its input, of the shape of the student's.
        target: Class indices (N,).

    Raises:
        UsageError: The shapes differ, or logits do not depend on their input.

    Example:
        >>> import torch
        >>> x = torch.zeros(2, 3, requires_grad=True)
        >>> gradient_attention_loss([x * 1.0, x], [x * 2.0, x], torch.tensor([0, 1]))
        tensor(0.3333, grad_fn=<DivBackward0>)
    """
    check_differentiable(student, teacher)
    check_classes(student[0], target)
    by_student = input_gradient(_cross_entropies(student[0], target), student[1], "student")
    by_teacher = input_gradient(_cross_entropies(teacher[0], target), teacher[1], "teacher")
    return (by_student - by_teacher).square().sum(dim=1).mean() / 2


class GradientAttentionLoss(DistillationLoss):
    """Gradient-based attention transfer (Zagoruyko, Komodakis 2017, arXiv:1612.03928).

    See `gradient_attention_loss`. Its term addresses ``student: [logits, input]`` and ``teacher: [logits, input]``.
    """

    needs_target = True
    differentiates_input = True

    def forward(self, student: Differentiable, teacher: Differentiable, target: Tensor) -> Tensor:
        """Compute the loss of logits and inputs, and of class indices (N,)."""
        return gradient_attention_loss(student, teacher, target)


def _cross_entropies(logits: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(upcast(logits), target.long(), reduction="none")
