"""Contrastive representation distillation: of all images the student's embedding is near the teacher's of the same."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_fraction, check_samples, check_temperature, check_width, upcast
from kd_lightning.losses.common.connectors import connect
from kd_lightning.losses.common.vectors import products, unit


def crd_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Noise-contrastive loss of telling each anchor's one positive from its K negatives.

    L = 1/N sum_n [-log D(p_n) - sum_k log(1 - D(q_nk))] with D(x) = exp(x) / (exp(x) + K)

    Args:
        positive: Of each anchor, the log of how much likelier its positive is than noise, (N,).
        negative: The same of its negatives, (N, K); minus infinity where one is missing.

    Example:
        >>> crd_loss(torch.tensor([0.0]), torch.tensor([[0.0]]))
        tensor(1.3863)
    """
    noise = math.log(negative.shape[1])
    return functional.softplus(noise - positive).mean() + functional.softplus(negative - noise).sum(dim=1).mean()


class CRDLoss(DistillationLoss):
    """Contrastive representation distillation, with memory banks.

    L = crd_loss(c(s, m(t))) + crd_loss(c(t, m(s))), c(x, m) = x^T m / temperature - log Z

    s and t are embeddings of both sides (linear, then of length one; both learn), m(t) and m(s) the banks, in which
    every training image has an embedding: that moves by 1 - momentum towards each new one. An anchor's positive is the
    bank's row of its own image, and K negatives are drawn, with replacement, from the rows of other classes. Z is the
    mean of exp(x^T m / temperature) in the first batch, and stays.

    Yonglong Tian, Dilip Krishnan, Phillip Isola: Contrastive Representation Distillation. ICLR 2020 (arXiv:1910.10699);
    weight 0.8, with or without KD. The published code lists all images' labels beforehand; here a row may be drawn once
    its image was seen, from the first batch on. Its Z and its noise both contain the number of images, which cancels.

    Banks, labels, Z and the count of draws are buffers: saved, and equal on all ranks. Nothing is written in eval mode.
    The banks take 2 num_samples dim numbers: 61 MB for MNIST, 1.3 GB for ImageNet. A term gives `target` as
    ``[target, index]``.

    Args:
        student_channels: Width of the student's features, flattened.
        teacher_channels: Width of the teacher's features, flattened.
        num_samples: Rows of the full training set: every index is below it.
        dim: Width of the embeddings.
        negatives: K.
        temperature: Divides cosines.
        momentum: How much of a bank's row stays.

    Raises:
        UsageError: An argument is out of its range; in a call: no class indices and image indices came, an index is not
            below `num_samples`, or there are not the same N >= 2 samples.

    Example:
        >>> loss = CRDLoss(4, 8, num_samples=10, negatives=5)
        >>> value = loss(torch.randn(3, 4), torch.randn(3, 8), [torch.tensor([0, 0, 1]), torch.tensor([2, 9, 4])])
        >>> value.shape, loss.labels.tolist()
        (torch.Size([]), [-1, -1, 0, -1, 1, -1, -1, -1, -1, 0])
    """

    needs_target = True
    compares_samples = True
    student_bank: Tensor
    teacher_bank: Tensor
    labels: Tensor
    log_means: Tensor
    calls: Tensor

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        num_samples: int,
        dim: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        if min(num_samples, dim, negatives) < 1:
            raise UsageError(f"num_samples={num_samples}, dim={dim} and negatives={negatives} must be at least 1")
        self.temperature = check_temperature(temperature)
        self.momentum = check_fraction(momentum, "momentum")
        self.negatives = negatives
        self.student_embedding = nn.Linear(student_channels, dim)
        self.teacher_embedding = nn.Linear(teacher_channels, dim)
        for bank in ("student_bank", "teacher_bank"):  # of a length of about one
            self.register_buffer(bank, (2 * torch.rand(num_samples, dim) - 1) * math.sqrt(3 / dim))
        self.register_buffer("labels", torch.full((num_samples,), -1))
        self.register_buffer("log_means", torch.full((2,), -math.inf))
        self.register_buffer("calls", torch.randint(2**31, ()))

    def forward(self, student: Tensor, teacher: Tensor, target: list[Tensor | None] | None = None) -> Tensor:
        """The loss of features (N, ...); `target` is the class indices (N,) and the image indices (N,)."""
        check_temperature(self.temperature)
        check_samples(student, teacher)
        label, index = self._check_target(target, len(student))
        student = embed(self.student_embedding, student, "student")
        teacher = embed(self.teacher_embedding, teacher, "teacher")
        labels = self.labels.index_put((index,), label)
        known, draws, is_negative = self._draw(labels, label)
        losses: list[Tensor] = []
        for side, (anchors, bank) in enumerate(((student, self.teacher_bank), (teacher, self.student_bank))):
            positive = (anchors * bank[index]).sum(dim=1) / self.temperature
            cosines = products(anchors, upcast(bank[known])).gather(1, draws)
            negative = (cosines / self.temperature).where(is_negative, -math.inf)
            log_mean = self._log_mean(side, positive.detach(), negative.detach())
            losses.append(crd_loss(positive - log_mean, negative - log_mean))
        if self.training:
            self.labels.copy_(labels)
            self.calls += 1
            for bank, new in ((self.student_bank, student), (self.teacher_bank, teacher)):
                bank[index] = unit(torch.lerp(new.detach(), upcast(bank[index]), self.momentum)).to(bank.dtype)
        return losses[0] + losses[1]

    def _draw(self, labels: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The images seen so far; places there of K of other classes for each of N; whether there are any."""
        known = labels.argsort(stable=True)[int((labels < 0).sum()) :]  # class by class
        first, last = (torch.searchsorted(labels[known], label, right=right).unsqueeze(1) for right in (False, True))
        others = len(known) - (last - first)
        generator = torch.Generator(labels.device).manual_seed(int(self.calls))
        draws = torch.randint(2**62, (len(label), self.negatives), generator=generator, device=labels.device)
        draws = draws % others.clamp(min=1)
        draws = (draws + (last - first) * (draws >= first)).clamp(max=len(known) - 1)  # over the own class
        return known, draws, others > 0

    def _log_mean(self, side: int, positive: Tensor, negative: Tensor) -> Tensor:
        """That of the first batch: log Z."""
        if self.log_means[side].isfinite():
            return self.log_means[side]
        logits = torch.cat([positive.unsqueeze(1), negative], dim=1)
        log_mean = logits.logsumexp(dim=(0, 1)) - logits.isfinite().sum().log()
        if self.training:
            self.log_means[side] = log_mean
        return log_mean

    def _check_target(self, target: list[Tensor | None] | None, count: int) -> tuple[Tensor, Tensor]:
        given = [part for part in target if part is not None] if isinstance(target, list) else []
        if [part.shape for part in given] != [(count,), (count,)] or any(part.is_floating_point() for part in given):
            raise UsageError(
                f"target {[tuple(part.shape) for part in given]} of {count} samples must be class indices (N,) and "
                "image indices (N,): set the term's target to [target, index], and use a loader that gives the index"
            )
        label, index = given
        if int(index.max()) >= len(self.labels):
            raise UsageError(
                f"there is an image of index {int(index.max())} and num_samples={len(self.labels)}: "
                "set num_samples to the rows of the full training set"
            )
        return label, index


def embed(linear: nn.Linear, features: Tensor, side: Literal["student", "teacher"]) -> Tensor:
    """Features (N, ...), flattened, in the space where they are compared, each of length one."""
    check_width(features.flatten(1), linear.in_features, side)
    with torch.autocast(features.device.type, enabled=False):
        return unit(connect(linear, features.flatten(1)))
