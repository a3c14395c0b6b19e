"""Contrastive representation distillation: match embeddings of the same image against those of other classes."""

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
    """Noise-contrastive loss of one positive against K negatives for each anchor.

    L = 1/N sum_n [-log D(p_n) - sum_k log(1 - D(q_nk))] with D(x) = exp(x) / (exp(x) + K)

    Args:
        positive: Log-ratio of each anchor's positive to noise, (N,).
        negative: Log-ratios of its negatives to noise, (N, K); minus infinity where one is missing.

    Example:
        >>> crd_loss(torch.tensor([0.0]), torch.tensor([[0.0]]))
        tensor(1.3863)
    """
    noise = math.log(negative.shape[1])
    return functional.softplus(noise - positive).mean() + functional.softplus(negative - noise).sum(dim=1).mean()


class CRDLoss(DistillationLoss):
    """Contrastive representation distillation, with memory banks.

    L = crd_loss(c(s, m(t))) + crd_loss(c(t, m(s))), c(x, m) = x^T m / temperature - log Z

    s and t are learned embeddings of both sides (linear, then scaled to length one). m(t) and m(s) are memory banks
    with an embedding of every training image, which moves by 1 - momentum towards each new one. An anchor's positive is
    the bank's row of the same image; K negatives are drawn with replacement from the rows of other classes. Z is the
    mean of exp(x^T m / temperature) in the first batch, and then constant.

    Yonglong Tian, Dilip Krishnan, Phillip Isola: Contrastive Representation Distillation. ICLR 2020 (arXiv:1910.10699);
    weight 0.8, with or without KD. The published code needs all images' labels beforehand; here a row can be drawn as
    soon as its image has been in a batch. Z and the noise of that code both contain the number of images, which
    cancels.

    Banks, labels, Z and the count of draws are buffers: saved, and equal on all ranks. They do not change in eval mode.
    The banks hold 2 num_samples dim numbers: 61 MB for MNIST, 1.3 GB for ImageNet. A step holds, for each side, the
    smaller of the products with all rows seen, N num_samples numbers, and of the rows drawn, N K dim, which is the
    published code's. The term's target is ``[target, index]``.

    An image that is twice in a batch leaves its last embedding and label in the banks. One of label -100, which has
    none, is an anchor, but no negative.

    Args:
        student_channels: Width of the student's features, flattened.
        teacher_channels: Width of the teacher's features, flattened.
        num_samples: Rows of the full training set; every index must be below it.
        dim: Width of the embeddings.
        negatives: K, the number of negatives for each anchor.
        temperature: Divisor of the cosines.
        momentum: Share of a bank's row that is kept at an update.

    Raises:
        UsageError: An argument is out of range; at a call: class or image indices are missing, an index is negative or
            not below `num_samples` (on a GPU this is read in the first call only, and later ones stop the process
            there), or the sides are not the same N >= 2 samples.

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
        for bank in ("student_bank", "teacher_bank"):  # rows of length about one
            self.register_buffer(bank, (2 * torch.rand(num_samples, dim) - 1) * math.sqrt(3 / dim))
        self.register_buffer("labels", torch.full((num_samples,), -1))
        self.register_buffer("log_means", torch.full((2,), -math.inf))
        self.register_buffer("calls", torch.randint(2**31, ()))
        self.is_checked = False
        self._read: tuple[Tensor, Tensor, int, int] | None = None
        self._on_host = (0, False)

    def forward(self, student: Tensor, teacher: Tensor, target: list[Tensor | None] | None = None) -> Tensor:
        """Compute the loss of features (N, ...); `target` is the class indices (N,) and the image indices (N,)."""
        check_temperature(self.temperature)
        check_samples(student, teacher)
        label, index = self._check_target(target, len(student))
        student = embed(self.student_embedding, student, "student")
        teacher = embed(self.teacher_embedding, teacher, "teacher")
        last = _last_of_image(index)
        labels = self.labels.index_put((index,), label[last])
        known, draws, is_negative = self._draw(labels, label, seen_only=labels.device.type == "cpu")
        losses: list[Tensor] = []
        for side, (anchors, bank) in enumerate(((student, self.teacher_bank), (teacher, self.student_bank))):
            positive = (anchors * bank[index]).sum(dim=1) / self.temperature
            cosines = _cosines(anchors, bank, known, draws)
            negative = (cosines / self.temperature).where(is_negative, -math.inf)
            log_mean = self._log_mean(side, positive.detach(), negative.detach())
            losses.append(crd_loss(positive - log_mean, negative - log_mean))
        if self.training:
            self.labels.copy_(labels)
            calls = self._host_values()[0]
            self.calls += 1
            self._remember(calls + 1, is_begun=True)
            for bank, new in ((self.student_bank, student), (self.teacher_bank, teacher)):
                bank[index] = unit(torch.lerp(new.detach()[last], upcast(bank[index]), self.momentum)).to(bank.dtype)
        return losses[0] + losses[1]

    def _draw(self, labels: Tensor, label: Tensor, seen_only: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Draw K negatives for each of N anchors among the images that have been in a batch.

        Returns the indices of those images, behind those of all others unless `seen_only`, the positions of the
        negatives among them (N, K), and (N, 1) whether there is an image of another class.
        """
        known, unseen = labels.argsort(stable=True), (labels < 0).sum()  # sorted by class
        if seen_only:  # which waits for the device
            known, unseen = known[int(unseen) :], torch.zeros_like(unseen)
        first, last = (
            torch.searchsorted(labels[known], label, right=right).unsqueeze(1).maximum(unseen)
            for right in (False, True)
        )
        others = len(known) - unseen - (last - first)
        generator = torch.Generator(labels.device).manual_seed(self._host_values()[0])
        draws = torch.randint(2**62, (len(label), self.negatives), generator=generator, device=labels.device)
        draws = draws % others.clamp(min=1) + unseen
        draws = (draws + (last - first) * (draws >= first)).clamp(max=len(known) - 1)  # skip the anchor's class
        return known, draws, others > 0

    def _host_values(self) -> tuple[int, bool]:
        """Return the count of draws and whether Z is known, read from the device only where a buffer was written."""
        if self._read is not None and not torch.compiler.is_compiling():
            *buffers, calls, log_means = self._read
            same = buffers[0] is self.calls and buffers[1] is self.log_means
            if same and (calls, log_means) == (self.calls._version, self.log_means._version):
                return self._on_host
        return self._remember(int(self.calls), bool(self.log_means.isfinite().all()))

    def _remember(self, calls: int, is_begun: bool) -> tuple[int, bool]:
        if not torch.compiler.is_compiling():
            self._on_host = (calls, is_begun)
            self._read = (self.calls, self.log_means, self.calls._version, self.log_means._version)
        return calls, is_begun

    def _log_mean(self, side: int, positive: Tensor, negative: Tensor) -> Tensor:
        """Return log Z, which the first batch determines."""
        if self._host_values()[1]:
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
                f"target {[tuple(part.shape) for part in given]} for {count} samples must be class indices (N,) and "
                "image indices (N,): set the term's target to [target, index], and use a loader whose batches have an "
                "index"
            )
        label, index = given
        if index.device.type != "cpu" and self.is_checked:
            return label, index.where(index >= 0, len(self.labels))  # out of range on both ends
        self.is_checked = True
        least, most = (int(end) for end in index.aminmax())
        if most >= len(self.labels):
            raise UsageError(
                f"image index {most} is not below num_samples={len(self.labels)}: "
                "set num_samples to the number of rows of the full training set"
            )
        if least < 0:
            raise UsageError(f"image index {least} is negative: number the rows of the full training set from 0")
        return label, index


def _last_of_image(index: Tensor) -> Tensor:
    """Return, for each sample of a batch, the position of the last one of the same image."""
    positions = torch.arange(len(index), device=index.device)
    return (positions * (index.unsqueeze(0) == index.unsqueeze(1))).amax(dim=1)


def _cosines(anchors: Tensor, bank: Tensor, known: Tensor, draws: Tensor) -> Tensor:
    """Compute the products of anchors (N, D) with the rows `known` that are drawn for each, (N, K)."""
    if draws.shape[1] * bank.shape[1] < len(known):
        return products(upcast(bank[known[draws]]), anchors.unsqueeze(1)).squeeze(2)  # of (N, K, D)
    return products(anchors, upcast(bank[known])).gather(1, draws)


def embed(linear: nn.Linear, features: Tensor, side: Literal["student", "teacher"]) -> Tensor:
    """Map flattened features (N, ...) to embeddings of length one, (N, dim)."""
    check_width(features.flatten(1), linear.in_features, side)
    with torch.autocast(features.device.type, enabled=False):
        return unit(connect(linear, features.flatten(1)))
