"""Adversarial distillation: a discriminator separates student from teacher, and the student learns to deceive it."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_fraction, upcast
from kd_lightning.losses.common.classes import check_classes
from kd_lightning.losses.common.connectors import connect


def adversarial_loss(verdict: Tensor, target: Tensor | None = None) -> Tensor:
    """Compute the student's loss: the discriminator should classify it as the teacher, and as the labelled class.

    L = -log sigmoid(d(s)) [- log softmax(c(s))_y], averaged over the batch, with verdict = [d, c]

    The part in brackets is the conditional form.

    Zheng Xu, Yen-Chang Hsu, Jiawei Huang: Training Shallow and Thin Networks for Acceleration via Knowledge
    Distillation with Conditional Adversarial Networks. 2018 (arXiv:1709.00513). The conditional discriminator also
    predicts the class (Odena et al. 2017), so that one sample cannot imitate the teacher's output for another.

    Args:
        verdict: The discriminator's output for the student's features, (N, 1); or (N, 1 + C) with logits of classes.
        target: Class indices (N,), for the conditional form.

    Raises:
        UsageError: The verdict has another shape, or has logits of classes and there is no target.

    Example:
        >>> adversarial_loss(torch.zeros(2, 1))
        tensor(0.6931)
        >>> adversarial_loss(torch.zeros(2, 1 + 10), torch.tensor([3, 7]))
        tensor(2.9957)
    """
    score, class_loss = _split_verdict(verdict, target)
    return functional.softplus(-score).mean() + class_loss


def discrimination_loss(
    student: Tensor, teacher: Tensor, target: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Compute the discriminator's loss: separate the teacher from the student, and predict the class of both.

    L = -log sigmoid(d(t)) - (1 - m) log(1 - sigmoid(d(s))) - m log sigmoid(d(s)) [- log softmax(c(t))_y
    - log softmax(c(s))_y], averaged over the batch

    Args:
        student: The discriminator's output for the student's features, (N, 1) or (N, 1 + C).
        teacher: Its output for the teacher's features, of the same shape.
        target: Class indices (N,), for the conditional form.
        smoothing: m, the share of the label "teacher" in the student's target, which keeps the discriminator from
            winning.

    Raises:
        UsageError: A verdict has a wrong shape, or has logits of classes and there is no target.

    Example:
        >>> discrimination_loss(torch.zeros(2, 1), torch.zeros(2, 1))
        tensor(1.3863)
    """
    (fake, fake_class_loss), (real, real_class_loss) = _split_verdict(student, target), _split_verdict(teacher, target)
    binary = functional.softplus(-real) + functional.softplus(fake) - smoothing * fake
    return binary.mean() + fake_class_loss + real_class_loss


class AdversarialLoss(DistillationLoss):
    """Adversarial distillation of logits or features, with its discriminator (Xu et al. 2018, arXiv:1709.00513).

    A term evaluates `adversarial_loss`, the student's loss. The discriminator's is `discrimination_loss`, which
    `kd_lightning.schemes.AdversarialDistiller` minimises with a separate optimizer. A scheme with one optimizer would
    train the discriminator to help the student, and therefore raises an error.

    To keep the discriminator from winning, the paper penalises its weights or adds adversarial examples. Here the first
    is the ``weight_decay`` of its optimizer, the second is `smoothing`.

    Args:
        discriminator: Maps features to (N, 1); in the conditional form to (N, 1 + C), followed by logits of C classes.
        connector: Maps the student's features to the width of the teacher's where they differ; it is trained with the
            student.
        classes: C; 0 for the unconditional form.
        smoothing: m in [0, 1/2).

    Raises:
        UsageError: `smoothing` is not below 1/2; at a call: the discriminator's output is not (N, 1 + classes), or the
            features of the two sides differ in shape after the connector.
    """

    is_adversarial = True

    def __init__(
        self,
        discriminator: nn.Module,
        connector: nn.Module | None = None,
        classes: int = 0,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if check_fraction(smoothing, "smoothing") >= 0.5:
            raise UsageError(
                f"smoothing={smoothing} must be below 0.5: above, the discriminator calls everything teacher"
            )
        self.discriminator = discriminator
        self.connector = nn.Identity() if connector is None else connector
        self.classes = classes
        self.needs_target = classes > 0
        self.smoothing = smoothing

    def forward(self, student: Tensor, teacher: Tensor | None, target: Tensor | None = None) -> Tensor:
        """Compute the student's loss of its features (N, ...); of the teacher's, only the shape is checked."""
        if teacher is not None and student.shape != teacher.shape and isinstance(self.connector, nn.Identity):
            _raise_shapes_differ(student, teacher)
        return adversarial_loss(self.verdict_on_student(student), target if self.classes else None)

    def discriminator_loss(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the discriminator's loss; no gradient reaches student or teacher."""
        verdicts = self.verdicts(student, teacher)
        return discrimination_loss(*verdicts, target if self.classes else None, self.smoothing)

    def verdict_on_student(self, student: Tensor) -> Tensor:
        """Return the discriminator's output for the student's features, (N, 1 + classes)."""
        return self._verdict(connect(self.connector, student))

    def verdicts(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return the discriminator's outputs for both sides, which are detached."""
        with torch.no_grad():
            student = connect(self.connector, student.detach())
        teacher = teacher.detach()
        if student.shape != teacher.shape:
            _raise_shapes_differ(student, teacher)
        return self._verdict(student), self._verdict(teacher)

    def _verdict(self, features: Tensor) -> Tensor:
        verdict = connect(self.discriminator, features)
        if verdict.shape != (len(features), 1 + self.classes):
            raise UsageError(
                f"the discriminator maps features {tuple(features.shape)} to {tuple(verdict.shape)}, but with "
                f"classes={self.classes} it must be (N, {1 + self.classes}): change the discriminator or classes"
            )
        return verdict


def _raise_shapes_differ(student: Tensor, teacher: Tensor) -> NoReturn:
    raise UsageError(
        f"student features {tuple(student.shape)} and teacher features {tuple(teacher.shape)} differ in shape, which "
        "alone would separate them: give the loss a connector to the teacher's shape, or address other layers"
    )


def _split_verdict(verdict: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the score of being the teacher, (N,), and the classification loss, 0 without logits of classes."""
    verdict = upcast(verdict)
    if verdict.dim() != 2 or not len(verdict):
        raise UsageError(f"a verdict {tuple(verdict.shape)} must be (N, 1) or (N, 1 + C): change the discriminator")
    if verdict.shape[1] == 1:
        return verdict[:, 0], verdict.new_zeros(())
    if target is None:
        raise UsageError(
            f"a verdict {tuple(verdict.shape)} has logits of classes but there is no target: set the term's target"
        )
    check_classes(verdict[:, 1:], target)
    return verdict[:, 0], functional.cross_entropy(verdict[:, 1:], target)
