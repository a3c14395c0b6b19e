"""The notebook's losses, networks and loop, and the two controls that differ from it in one expression each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.data import LabeledImages
from kd_lightning.losses.response.probability_cross_entropy import probability_cross_entropy_loss
from kd_lightning.losses.response.soft_cross_entropy import soft_cross_entropy_loss
from kd_lightning.networks.images.convnet import StudentConvNet, TeacherConvNet

TRAIN_IMAGES, TEST_IMAGES = 60_000, 10_000
BATCH_SIZE = 64
TEMPERATURE = 3.0
LABEL_WEIGHT = 0.5  # the notebook's lambda; the teacher has the rest
CLIP_NORM = 1.0

Loss = Callable[[Tensor, Tensor | None, Tensor], Tensor]


def notebook_soft_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """Soft cross-entropy times T^2, as in the notebook: where the softmax underflows to 0, the loss is infinite."""
    log_student = (student / TEMPERATURE).softmax(dim=1).log()
    return TEMPERATURE**2 * -(log_student * (teacher / TEMPERATURE).softmax(dim=1)).sum(dim=1).mean()


def sound_soft_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """The same quantity through log_softmax: the package's loss."""
    return soft_cross_entropy_loss(student, teacher, TEMPERATURE)


def logit_loss(student: Tensor, teacher: Tensor | None, target: Tensor) -> Tensor:
    """Cross-entropy of logits, as torch defines it."""
    return functional.cross_entropy(student, target)


def distilled_loss(soft: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """Half the loss of the labels and half the soft loss, T^2 included: the notebook's lambda is .5."""

    def loss(student: Tensor, teacher: Tensor | None, target: Tensor) -> Tensor:
        assert teacher is not None
        labels = probability_cross_entropy_loss(student, None, target)
        return LABEL_WEIGHT * labels + (1 - LABEL_WEIGHT) * soft(student, teacher)

    return loss


@dataclass(frozen=True)
class Variant:
    """A network and its loss; a distilled one is clipped and stops at a NaN, as in the notebook."""

    network: Callable[[], nn.Module]
    loss: Loss
    taught: bool
    epoch_seconds: float  # on one core of one machine, for the estimate of the time left


VARIANTS = {
    "teacher": Variant(TeacherConvNet, probability_cross_entropy_loss, taught=False, epoch_seconds=70.0),
    "student": Variant(StudentConvNet, probability_cross_entropy_loss, taught=False, epoch_seconds=9.0),
    "student_on_logits": Variant(StudentConvNet, logit_loss, taught=False, epoch_seconds=9.0),
    "distilled": Variant(StudentConvNet, distilled_loss(notebook_soft_cross_entropy), taught=True, epoch_seconds=32.0),
    "distilled_log_softmax": Variant(
        StudentConvNet, distilled_loss(sound_soft_cross_entropy), taught=True, epoch_seconds=32.0
    ),
}


def batches(digits: LabeledImages, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images in [0, 1], grey repeated in three channels, and classes; the last batch may be shorter."""
    for rows in order.split(BATCH_SIZE):
        yield digits.images[rows].float().div(255).repeat(1, 3, 1, 1), digits.labels[rows]


@dataclass
class Overflow:
    """Counts steps at which the soft cross-entropy of finite logits is infinite, for both forms of the logarithm."""

    steps: int = 0
    log_of_softmax: int = 0
    log_softmax: int = 0
    first: int | None = None

    def count(self, student: Tensor, teacher: Tensor) -> None:
        """Check the logits of one step."""
        if not student.isfinite().all():
            return
        self.steps += 1
        self.log_softmax += not sound_soft_cross_entropy(student, teacher).isfinite()
        if not notebook_soft_cross_entropy(student, teacher).isfinite():
            self.log_of_softmax += 1
            self.first = self.first or self.steps


class LossIsNaN(Exception):
    """The assertion of the notebook failed: a loss is NaN."""


def train_epoch(
    network: nn.Module,
    teacher: nn.Module | None,
    variant: Variant,
    optimizer: torch.optim.Optimizer,
    data: Iterable[tuple[Tensor, Tensor]],
    overflow: Overflow,
) -> dict[str, float]:
    """Train one epoch: the loss as the notebook printed it (batch means summed, over N), running accuracy, speed."""
    total, hits, images, steps, start = 0.0, 0, 0, 0, perf_counter()
    for x, y in data:
        logits = network(x)
        soft = None if teacher is None else teacher(x)
        loss = variant.loss(logits, soft, y)
        if soft is not None:
            if loss.isnan():
                raise LossIsNaN
            overflow.count(logits.detach(), soft)
        optimizer.zero_grad()
        loss.backward()
        if variant.taught:
            nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
        optimizer.step()
        total, hits = total + loss.item(), hits + int((logits.argmax(dim=1) == y).sum())
        images, steps = images + len(y), steps + 1
    return {
        "train_loss": total / images,
        "train_accuracy": hits / images,
        "iterations_per_second": steps / (perf_counter() - start),
    }


@torch.no_grad()
def evaluate(
    network: nn.Module, teacher: nn.Module | None, loss: Loss, data: Iterable[tuple[Tensor, Tensor]]
) -> tuple[float, Tensor, Tensor]:
    """Evaluate: the loss as the notebook printed it, the logits, and the classes of the test images."""
    total = 0.0
    logits: list[Tensor] = []
    target: list[Tensor] = []
    for x, y in data:
        logits.append(network(x))
        target.append(y)
        total += loss(logits[-1], None if teacher is None else teacher(x), y).item()
    return total / sum(map(len, target)), torch.cat(logits), torch.cat(target)


def gradient_norms(loss: Loss, logits: Tensor, target: Tensor) -> Tensor:
    """Compute, for each image, the norm of the gradient of a loss with respect to the logits."""
    logits = logits.detach().double().requires_grad_()  # small ones are differences of nearly equal numbers
    (gradient,) = torch.autograd.grad(len(target) * loss(logits, None, target), logits)
    return gradient.norm(dim=1)


def study(logits: Tensor, target: Tensor) -> dict[str, Any]:
    """Measure recall by class, the widest gap between two logits, and the gradient of the mistakes."""
    right = logits.argmax(dim=1) == target
    return {
        "test_accuracy": right.float().mean().item(),
        "recall": [right[target == label].float().mean().item() for label in range(logits.shape[1])],
        "logit_gap": (logits.amax(dim=1) - logits.amin(dim=1)).max().item(),
        "mistake_gradient": gradient_norms(probability_cross_entropy_loss, logits, target)[~right].median().item(),
        "mistake_gradient_on_logits": gradient_norms(logit_loss, logits, target)[~right].median().item(),
    }
