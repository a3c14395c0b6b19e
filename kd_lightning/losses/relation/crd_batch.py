"""Contrastive representation distillation without memory banks: the negatives come from the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_samples, check_temperature
from kd_lightning.losses.common.relations import as_rows
from kd_lightning.losses.common.vectors import products
from kd_lightning.losses.relation.crd import embed


def in_batch_crd_loss(student: Tensor, teacher: Tensor, target: Tensor, temperature: float = 0.07) -> Tensor:
    """InfoNCE in both directions: identify a sample's embedding among those of other classes in the batch.

    L = -1/N sum_n [log p(t_n | s_n) + log p(s_n | t_n)], p(t_n | s_n) = exp(s_n^T t_n / T) / sum_k exp(s_n^T t_k / T)

    where k runs over n and all samples of other classes.

    The objective of Yonglong Tian, Dilip Krishnan, Phillip Isola: Contrastive Representation Distillation. ICLR 2020
    (arXiv:1910.10699), in the form of Aaron van den Oord, Yazhe Li, Oriol Vinyals: Representation Learning with
    Contrastive Predictive Coding. 2018 (arXiv:1807.03748): no banks and no constant Z. The negatives
    come from the batch, so large batches help.

    Args:
        student: Embeddings of length one, (N, D).
        teacher: Embeddings of length one, (N, D).
        target: Class indices (N,). Samples of -100, without a label, are taken for one class: they are no negatives
            of each other, and negatives of all samples with a label.
        temperature: T > 0, the divisor of the cosines.

    Raises:
        UsageError: The sides are not the same N >= 2 samples, the target is not class indices (N,), or the temperature
            is not a finite number above 0.

    Example:
        >>> in_batch_crd_loss(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), temperature=1.0)
        tensor(0.6265)
    """
    check_temperature(temperature)
    student, teacher = as_rows(student, teacher)
    if target.shape != (len(student),) or target.is_floating_point():
        raise UsageError(
            f"target {tuple(target.shape)} for {len(student)} samples must be class indices (N,): set the term's target"
        )
    logits = products(student, teacher) / temperature
    alike = (target.unsqueeze(0) == target.unsqueeze(1)).fill_diagonal_(fill_value=False)
    logits = logits.masked_fill(alike, -math.inf)
    own = torch.arange(len(student), device=student.device)
    return functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)


class InBatchCRDLoss(DistillationLoss):
    """Contrastive representation distillation within a batch (Tian et al. 2020); see `in_batch_crd_loss`.

    Args:
        student_channels: Width of the student's features, flattened.
        teacher_channels: Width of the teacher's features, flattened; its embedding is trained too.
        dim: Width of the embeddings.
        temperature: Divisor of the cosines.
    """

    needs_target = True
    compares_samples = True

    def __init__(self, student_channels: int, teacher_channels: int, dim: int = 128, temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.student_embedding = nn.Linear(student_channels, dim)
        self.teacher_embedding = nn.Linear(teacher_channels, dim)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the loss of features (N, ...) and class indices (N,)."""
        check_samples(student, teacher)
        if target is None:
            raise UsageError("InBatchCRDLoss needs class indices (N,) and target is None: set the term's target")
        student = embed(self.student_embedding, student, "student")
        teacher = embed(self.teacher_embedding, teacher, "teacher")
        return in_batch_crd_loss(student, teacher, target, self.temperature)
