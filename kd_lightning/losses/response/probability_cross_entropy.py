"""The origin notebook's loss: cross-entropy applied to probabilities instead of logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import upcast
from kd_lightning.losses.common.classes import labeled_mean


def probability_cross_entropy_loss(student: Tensor, teacher: Tensor | None, target: Tensor) -> Tensor:
    """Cross-entropy of softmax(softmax(z)), kept only to reproduce the origin's numbers; train with `task_loss`.

    p = softmax(z), q = softmax(p), L = -1/N sum_n log q_(n, y_n)

    Cross-entropy takes logits and applies a softmax itself. Applied to probabilities, which lie in [0, 1], it has two
    defects:

    - *The loss has a floor.* A certain and correct prediction still has the loss log(e + C - 1) - 1, which is 1.4612
      for ten classes, and a certain and wrong one exactly 1 more. Once the softmax has saturated, the loss is the floor
      plus the error rate, a step function without a gradient. (The origin printed summed batch means divided by the
      number of images: with batches of 64 the floor reads .0228.)
    - *The gradient vanishes on both sides.* With g = q - onehot(y), dL/dz_k = p_k (g_k - sum_j p_j g_j), so that
      abs(dL/dz_y) <= p_y (1 - p_y) (1 + max_j q_j - q_y). For plain logits it is 1 - p_y, largest where the
      prediction is worst. Here the factor p_y makes it vanish exactly there: a class with very small probabilities
      receives no gradient from its own images, and recovers only if training on other classes changes it.

    Args:
        student: Logits z, (N, C).
        teacher: Unused; all losses have the signature (student, teacher, target).
        target: Class indices (N,); samples of index -100, without a label, are left out of the mean.

    Raises:
        UsageError: The shapes do not fit each other.

    Example:
        >>> import torch
        >>> certain = 100 * torch.eye(10)
        >>> probability_cross_entropy_loss(certain, None, torch.arange(10))
        tensor(1.4612)
        >>> probability_cross_entropy_loss(certain, None, torch.arange(10).roll(1))
        tensor(2.4612)
    """
    if student.dim() != 2 or target.shape != student.shape[:1] or student.shape[0] < 1 or student.shape[1] < 2:
        raise UsageError(
            f"logits {tuple(student.shape)} and target {tuple(target.shape)} do not fit: logits are (N, C), "
            "targets class indices (N,), N >= 1 and C >= 2"
        )
    return labeled_mean(functional.cross_entropy(upcast(student).softmax(dim=1), target, reduction="none"), target)


class ProbabilityCrossEntropyLoss(DistillationLoss):
    """The origin notebook's loss, kept only to reproduce its numbers; see `probability_cross_entropy_loss`."""

    label_kind = "classes"
    takes_rows = True
    softmax_over_classes = True
    takes_probabilities = True
    needs_target = True

    def forward(self, student: Tensor, teacher: Tensor | None, target: Tensor) -> Tensor:
        """Compute the cross-entropy of softmax(softmax(z)) of logits (N, C); `teacher` is unused."""
        return probability_cross_entropy_loss(student, teacher, target)
