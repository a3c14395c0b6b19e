"""Adversarial distillation: a discriminator tells the student from the teacher, and the student misleads it."""

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
    """What the student minimises: that it is taken for the teacher, and, in the conditional form, for its class.

    L = -log sigmoid(d(s)) [- log softmax(c(s))_y], averaged over the batch, with verdict = [d, c]

    Zheng Xu, Yen-Chang Hsu, Jiawei Huang: Training Shallow and Thin Networks for Acceleration via Knowledge
    Distillation with Conditional Adversarial Networks. 2018 (arXiv:1709.00513). The discriminator names the class as
    well (Odena et al. 2017), so that one sample cannot pass for the teacher's answer to another.

    Args:
        verdict: What a discriminator says of the student's features, (N, 1), or (N, 1 + C) with logits of classes.
        target: Class indices (N,), of the conditional form.

    Raises:
        UsageError: The verdict is no such matrix, or names classes and there is no target.

    Example:
        >>> adversarial_loss(torch.zeros(2, 1))
        tensor(0.6931)
        >>> adversarial_loss(torch.zeros(2, 1 + 10), torch.tensor([3, 7]))
        tensor(2.9957)
    """
    said, named = _said(verdict, target)
    return functional.softplus(-said).mean() + named


def discrimination_loss(
    student: Tensor, teacher: Tensor, target: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """What the discriminator minimises: to know the teacher from the student, and the class of both.

    L = -log sigmoid(d(t)) - (1 - m) log(1 - sigmoid(d(s))) - m log sigmoid(d(s)) [- log softmax(c(t))_y
    - log softmax(c(s))_y], averaged over the batch

    Args:
        student: What the discriminator says of the student's features, (N, 1) or (N, 1 + C).
        teacher: What it says of the teacher's, of the same shape.
        target: Class indices (N,), of the conditional form.
        smoothing: m, how much the discriminator is asked to take the student for the teacher, against its winning.

    Raises:
        UsageError: As for `adversarial_loss`.

    Example:
        >>> discrimination_loss(torch.zeros(2, 1), torch.zeros(2, 1))
        tensor(1.3863)
    """
    (fake, named_fake), (real, named_real) = _said(student, target), _said(teacher, target)
    told = functional.softplus(-real) + functional.softplus(fake) - smoothing * fake
    return told.mean() + named_fake + named_real


class AdversarialLoss(DistillationLoss):
    """A discriminator of logits or features, and what the student makes of it (Xu et al. 2018, arXiv:1709.00513).

    See `adversarial_loss` for the student's move, which is what a term measures, and `discrimination_loss` for the
    discriminator's, which `kd_lightning.schemes.AdversarialDistiller` makes with an optimizer of its own. Any other
    scheme with one optimizer would train the discriminator to help, and refuses it.

    The paper keeps the discriminator from winning by a penalty on its weights, or by adversarial examples; here the
    first is the ``weight_decay`` of its optimizer, the second is `smoothing`.

    Args:
        discriminator: Gives (N, 1) for features; or (N, 1 + C), logits of C classes behind, in the conditional form.
        connector: From the student's features to what the discriminator reads, where they are not as wide as the
            teacher's; it learns with the student.
        classes: C; 0 for the form that is not conditional.
        smoothing: m in [0, 1/2).

    Raises:
        UsageError: `smoothing` is not below 1/2; at a call: the discriminator says other than (N, 1 + classes), or
            the features of both sides are not alike behind the connector.
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
            raise UsageError(f"smoothing={smoothing} must be below 0.5, or the discriminator takes all for the teacher")
        self.discriminator = discriminator
        self.connector = nn.Identity() if connector is None else connector
        self.classes = classes
        self.needs_target = classes > 0
        self.smoothing = smoothing

    def forward(self, student: Tensor, teacher: Tensor | None, target: Tensor | None = None) -> Tensor:
        """The student's move: the loss of its features (N, ...). The teacher's are the discriminator's to know."""
        if teacher is not None and student.shape != teacher.shape and isinstance(self.connector, nn.Identity):
            _refuse(student, teacher)
        return adversarial_loss(self.verdict_on_student(student), target if self.classes else None)

    def discriminate(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """The discriminator's move: the loss of what it says, with both sides held fixed."""
        said = self.verdicts(student, teacher)
        return discrimination_loss(*said, target if self.classes else None, self.smoothing)

    def verdict_on_student(self, student: Tensor) -> Tensor:
        """What the discriminator says of the student's features."""
        return self._verdict(connect(self.connector, student))

    def verdicts(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """What it says of both sides, which are held fixed."""
        with torch.no_grad():
            student = connect(self.connector, student.detach())
        teacher = teacher.detach()
        if student.shape != teacher.shape:
            _refuse(student, teacher)
        return self._verdict(student), self._verdict(teacher)

    def _verdict(self, features: Tensor) -> Tensor:
        verdict = connect(self.discriminator, features)
        if verdict.shape != (len(features), 1 + self.classes):
            raise UsageError(
                f"the discriminator says {tuple(verdict.shape)} of features {tuple(features.shape)}, and "
                f"(N, {1 + self.classes}) was expected of classes={self.classes}: change one of them"
            )
        return verdict


def _refuse(student: Tensor, teacher: Tensor) -> NoReturn:
    raise UsageError(
        f"student features {tuple(student.shape)} and teacher features {tuple(teacher.shape)} are told apart by their "
        "shape: give the loss a connector to the same shape as the teacher's, or address other layers"
    )


def _said(verdict: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
    """Real or not, (N,), and the loss of the class that is named, 0 where none is."""
    verdict = upcast(verdict)
    if verdict.dim() != 2 or not len(verdict):
        raise UsageError(f"a verdict {tuple(verdict.shape)} must be (N, 1) or (N, 1 + C)")
    if verdict.shape[1] == 1:
        return verdict[:, 0], verdict.new_zeros(())
    if target is None:
        raise UsageError(f"a verdict {tuple(verdict.shape)} names classes and there is no target: give one, or (N, 1)")
    check_classes(verdict[:, 1:], target)
    return verdict[:, 0], functional.cross_entropy(verdict[:, 1:], target)
