"""Adversarial distillation with a least-squares loss in place of cross-entropy."""

from __future__ import annotations

from torch import Tensor

from kd_lightning.losses.adversarial.adversarial import AdversarialLoss
from kd_lightning.losses.common.checks import upcast


def least_squares_adversarial_loss(verdict: Tensor) -> Tensor:
    """Compute the network's least-squares loss: (1 - sigmoid(d(s)))^2, averaged over the batch.

    Inseop Chung, SeongUk Park, Jangho Kim, Nojun Kwak: Feature-map-level Online Adversarial Knowledge Distillation.
    ICML 2020 (arXiv:2002.01775), with the least-squares loss of Mao et al. (ICCV 2017).

    Args:
        verdict: The discriminator's output for the network's features, (N, 1).

    Example:
        >>> import torch
        >>> least_squares_adversarial_loss(torch.zeros(2, 1))
        tensor(0.2500)
    """
    return (-upcast(verdict)).sigmoid().square().mean()  # 1 - sigmoid(d) = sigmoid(-d), without cancellation


def least_squares_discrimination_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the discriminator's loss: (1 - sigmoid(d(t)))^2 + sigmoid(d(s))^2, averaged over the batch.

    Args:
        student: The discriminator's output for the features that it should reject, (N, 1).
        teacher: Its output for the features that it should accept, (N, 1).

    Example:
        >>> import torch
        >>> least_squares_discrimination_loss(torch.zeros(2, 1), torch.zeros(2, 1))
        tensor(0.5000)
    """
    return least_squares_adversarial_loss(teacher) + upcast(student).sigmoid().square().mean()


class LeastSquaresAdversarialLoss(AdversarialLoss):
    """Unconditional `AdversarialLoss` by least squares (Chung et al. 2020, arXiv:2002.01775).

    The network's loss is `least_squares_adversarial_loss`, the discriminator's `least_squares_discrimination_loss`. The
    arguments are those of `AdversarialLoss`; leave `classes` and `smoothing` at 0.
    """

    def forward(self, student: Tensor, teacher: Tensor | None, target: Tensor | None = None) -> Tensor:
        """Compute the network's loss of its features (N, ...); teacher and target are unused."""
        return least_squares_adversarial_loss(self.verdict_on_student(student))

    def discriminator_loss(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the discriminator's loss; no gradient reaches either side."""
        return least_squares_discrimination_loss(*self.verdicts(student, teacher))
