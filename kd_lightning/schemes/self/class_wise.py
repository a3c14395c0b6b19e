"""Class-wise self-knowledge distillation: another image of the same class teaches."""

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
    """The student learns to say of an image what it says of another one of the same class.

    L = CE(z(x), y) + lambda T^2 KL(softmax(z(x') / T) || softmax(z(x) / T)), with z(x') held fixed and x' of class y

    Sukmin Yun, Jongjin Park, Kimin Lee, Jinwoo Shin: Regularizing Class-wise Predictions via Self-knowledge
    Distillation. CVPR 2020 (arXiv:2003.13964). T = 4, and lambda = 1, or 3 on fine-grained images. As in the authors'
    code x and x' go through the network one after the other, in training mode both: each has its own batch statistics
    and dropout, and both move BatchNorm's running statistics.

    Of a training batch the first half learns and the second half, row by row of the same classes, teaches:
    `kd_lightning.data.SameClassPairs` gives such batches. The arguments are those of `kd_lightning.Learner`.

    Raises:
        UsageError: A batch cannot be halved; at an epoch's first batch: the halves are not of the same classes.

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
        """Looks whether partners are of one class: once an epoch, as a GPU would have to be waited for."""
        target = target_of(self.split_batch(batch).labels)
        if batch_idx == 0 and target is not None and not torch.equal(*_halves(target)):
            raise UsageError("the two halves of a batch are not of the same classes: give the data as SameClassPairs")

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """The terms of the first half, taught by the second."""
        batch = self.split_batch(batch)
        learning, teaching = _halves(batch.student)
        labels, _ = _halves(batch.labels)
        student = tap(self.student, learning, self.terms.layers("student"))
        teacher = detached(tap(self.student, teaching, self.terms.layers("teacher")))
        return self.term_losses(student, teacher, labels)


def _halves(value: Any) -> tuple[Any, Any]:
    """A tensor's rows, or those of each tensor in a mapping."""
    if isinstance(value, Mapping):
        halved = {name: _halves(item) for name, item in cast("Mapping[str, Any]", value).items()}
        return {name: first for name, (first, _) in halved.items()}, {name: last for name, (_, last) in halved.items()}
    if len(value) % 2:
        raise UsageError(f"a batch of {len(value)} rows has no two halves: give the data as SameClassPairs")
    return tuple(value.chunk(2))
