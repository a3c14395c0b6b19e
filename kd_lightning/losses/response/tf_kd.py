"""Teacher-free distillation from a virtual teacher: the label with a fixed probability, all other classes equal."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_temperature, upcast
from kd_lightning.losses.common.classes import check_classes, class_indices, labeled_mean
from kd_lightning.losses.common.divergence import divergences


def tf_kd_loss(student: Tensor, target: Tensor, temperature: float = 20.0, correct: float = 0.99) -> Tensor:
    """Hinton's loss with a virtual teacher: probability a for the labelled class, and the rest shared equally.

    L = T^2 / N sum_n KL(softmax(log u_n / T) || softmax(s_n / T)), u_nc = a if c is the label, else (1 - a) / (C - 1)

    Li Yuan, Francis E. H. Tay, Guilin Li, Tao Wang, Jiashi Feng: Revisiting Knowledge Distillation via Label Smoothing
    Regularization. CVPR 2020 (arXiv:1909.11723), equation 9, with T = 20, a = .99, weight .1 for this loss and .9 for
    the task loss. At T = 1 it is label smoothing minus a constant; a high T also softens the student.

    The equation has no factor T^2; here the factor is that of `kd_loss`. The authors' code deviates further from the
    equation: it softens probabilities as if they were logits, softmax(u / T), leaves the student at T = 1, divides by C
    as well as by N, and multiplies by 1 to 100, with T from 10 to 40.

    Args:
        student: Logits (N, C).
        target: Class indices (N,); samples of index -100, without a label, are left out of the mean.
        temperature: T > 0; higher is softer.
        correct: The virtual teacher's probability a of the labelled class, between 0 and 1.

    Raises:
        UsageError: The shapes do not fit each other, `correct` is not between 0 and 1, or the temperature is not a
            finite number above 0.

    Example:
        >>> tf_kd_loss(torch.zeros(1, 10), torch.tensor([3]))
        tensor(2.4790)
    """
    check_classes(student, target)
    _check_correct(correct)
    check_temperature(temperature)
    student = upcast(student) / temperature
    teacher = torch.full_like(student, math.log((1 - correct) / (student.shape[1] - 1)))
    teacher.scatter_(1, class_indices(target).unsqueeze(1), math.log(correct))
    log_student, log_teacher = student.log_softmax(dim=1), (teacher / temperature).log_softmax(dim=1)
    return labeled_mean(divergences(log_student, log_teacher, temperature), target) * temperature**2


class TfKDLoss(DistillationLoss):
    """Teacher-free distillation (Yuan et al. 2020, arXiv:1909.11723); see `tf_kd_loss`.

    Its term has no teacher: ``Term(TfKDLoss(), weight=0.1, teacher=None)``.

    Args:
        temperature: T > 0; higher is softer. A `TemperatureSchedule` may change it.
        correct: The virtual teacher's probability of the labelled class, between 0 and 1.
    """

    takes_rows = True
    needs_target = True
    skips_unlabeled = True

    def __init__(self, temperature: float = 20.0, correct: float = 0.99) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.correct = _check_correct(correct)

    def forward(self, student: Tensor, teacher: Tensor | None, target: Tensor) -> Tensor:
        """Compute the loss of logits (N, C) and class indices (N,); `teacher` is unused."""
        return tf_kd_loss(student, target, self.temperature, self.correct)


def _check_correct(correct: float) -> float:
    if not 0 < correct < 1:
        raise UsageError(f"correct={correct} must lie between 0 and 1, e.g. 0.99")
    return correct
