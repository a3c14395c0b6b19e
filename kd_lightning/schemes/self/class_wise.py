"""Class-wise self-knowledge distillation: predictions for images of the same class are pulled together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from kd_lightning.core.activations import tap
from kd_lightning.core.batch import target_of
from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import Learner
from kd_lightning.schemes.online.peers import detached


class CSKD(Learner):
    """The student's prediction for an image learns from its prediction for another image of the same class.

    L = CE(z(x), y) + lambda T^2 KL(softmax(z(x') / T) || softmax(z(x) / T)), with z(x') held fixed and x' of class y

    Sukmin Yun, Jongjin Park, Kimin Lee, Jinwoo Shin: Regularizing Class-wise Predictions via Self-knowledge
    Distillation. CVPR 2020 (arXiv:2003.13964). T = 4, and lambda = 1, or 3 on fine-grained images. As in the authors'
    code x and x' pass through the network one after the other, both in training mode: each has its own batch statistics
    and dropout mask, and both update BatchNorm's running statistics.

    In a training batch the first half are the x and the second half the x', of the same classes row by row:
    `kd_lightning.data.SameClassPairs` yields such batches. The student is the only network: it is trained and is the
    inference network. Each term is logged as ``train/<term>``. The baseline is the student trained alone, a
    `Classifier`. The arguments are those of `kd_lightning.Learner`.

    Raises:
        UsageError: A batch has an odd number of rows; at an epoch's first batch: the halves have different classes.

    Example:
        >>> from kd_lightning import Term
        >>> from kd_lightning.losses import KDLoss, TaskLoss
        >>> from kd_lightning.networks import StudentConvNet
        >>> terms = {"task": Term(TaskLoss(), teacher=None), "same_class": Term(KDLoss(temperature=4.0))}
        >>> learner = CSKD(StudentConvNet(), terms)
        >>> sorted(learner.compute_losses((torch.zeros(4, 3, 28, 28), torch.tensor([3, 7, 3, 7]))))
        ['same_class', 'task']
    """

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Check that the halves have the same classes: once an epoch, as it makes the CPU wait for a GPU."""
        target = target_of(self.split_batch(batch).labels)
        if batch_idx == 0 and target is not None and not torch.equal(*_halves(target)):
            raise UsageError("the two halves of a batch have different classes: use the data module SameClassPairs")

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """Compute each term for the first half of the batch, with the second half as its teacher."""
        batch = self.split_batch(batch)
        learning, teaching = _halves(batch.student)
        labels, _ = _halves(batch.labels)
        student = tap(self.student, learning, self.terms.layers("student"))
        teacher = detached(tap(self.student, teaching, self.terms.layers("teacher")))
        return self.term_losses(student, teacher, labels)


def _halves(value: Any) -> tuple[Any, Any]:
    """Halve a tensor's rows, or those of each tensor in a mapping."""
    if isinstance(value, Mapping):
        halved = {name: _halves(item) for name, item in cast("Mapping[str, Any]", value).items()}
        return {name: first for name, (first, _) in halved.items()}, {name: last for name, (_, last) in halved.items()}
    if len(value) % 2:
        raise UsageError(f"a batch of {len(value)} rows cannot be halved: use the data module SameClassPairs")
    return tuple(value.chunk(2))
