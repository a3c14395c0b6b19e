"""Adversarial distillation by least squares: how far the discriminator is from being misled."""

from __future__ import annotations

from torch import Tensor

from kd_lightning.losses.adversarial.adversarial import AdversarialLoss
from kd_lightning.losses.common.checks import upcast


def least_squares_adversarial_loss(verdict: Tensor) -> Tensor:
    """What the network minimises: (1 - sigmoid(d(s)))^2, averaged over the batch.

    Inseop Chung, SeongUk Park, Jangho Kim, Nojun Kwak: Feature-map-level Online Adversarial Knowledge Distillation.
    ICML 2020 (arXiv:2002.01775), after the least squares of Mao et al. (ICCV 2017).

    Args:
        verdict: What a discriminator says of the network's features, (N, 1).

    Example:
        >>> import torch
        >>> least_squares_adversarial_loss(torch.zeros(2, 1))
        tensor(0.2500)
    """
    return (-upcast(verdict)).sigmoid().square().mean()  # 1 - sigmoid(d), without its cancellation


def least_squares_discrimination_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """What the discriminator minimises: (1 - sigmoid(d(t)))^2 + sigmoid(d(s))^2, averaged over the batch.

    Args:
        student: What it says of the features that it is to call false, (N, 1).
        teacher: What it says of the true ones, (N, 1).

    Example:
        >>> import torch
        >>> least_squares_discrimination_loss(torch.zeros(2, 1), torch.zeros(2, 1))
        tensor(0.5000)
    """
    return least_squares_adversarial_loss(teacher) + upcast(student).sigmoid().square().mean()


class LeastSquaresAdversarialLoss(AdversarialLoss):
    """`AdversarialLoss` by least squares (Chung et al. 2020, arXiv:2002.01775), not conditional.

    See `least_squares_adversarial_loss` for the network's move and `least_squares_discrimination_loss` for the
    discriminator's. The arguments are those of `AdversarialLoss`, without classes and smoothing.
    """

    def forward(self, student: Tensor, teacher: Tensor | None, target: Tensor | None = None) -> Tensor:
        """The network's move."""
        return least_squares_adversarial_loss(self.verdict_on_student(student))

    def discriminate(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """The discriminator's move, with both sides held fixed."""
        return least_squares_discrimination_loss(*self.verdicts(student, teacher))
