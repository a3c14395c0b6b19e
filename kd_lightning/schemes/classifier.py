"""Training without a teacher: how a teacher is trained, and the baseline student."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import Learner, LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.term import Term
from kd_lightning.losses import TaskLoss


class Classifier(Learner):
    """A network that learns from labels alone: a teacher in training, or the student without its teacher.

    This is the baseline of every distillation: the same student, data and steps, without the terms that compare it with
    a teacher. One network is trained, and it is the inference network, called ``student`` in either role. Logged are
    ``train/<term>`` and ``train/loss`` in training and the metrics of `Learner` in evaluation.

    Args:
        student: The network to train, be it the student or a future teacher.
        terms: The losses by name; cross-entropy against ``target`` by default.
        optimizer: Builds the optimizer from the parameters that learn.
        lr_scheduler: Builds a learning-rate scheduler from the optimizer.
        lr_interval: ``step`` or ``epoch``: when the scheduler steps.
        metrics: Any torchmetrics collection to evaluate by; by default that of the kind of label.
        input_key: The name of the network's input in a batch that is a mapping of several modalities, such as those of
            `kd_lightning.data.PairedViews`; not needed with other data.

    Raises:
        UsageError: A term compares with a teacher; at a batch: it has no such input.

    Example:
        >>> from kd_lightning.networks import StudentConvNet
        >>> learner = Classifier(StudentConvNet())
        >>> losses = learner.compute_losses((torch.zeros(2, 3, 28, 28), torch.tensor([3, 7])))
        >>> sorted(losses)
        ['task']
    """

    def __init__(
        self,
        student: nn.Module,
        terms: dict[str, Term] | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
        input_key: str | None = None,
    ) -> None:
        terms = {"task": Term(TaskLoss(), teacher=None)} if terms is None else terms
        for name, term in terms.items():
            if term.teacher is not None:
                raise UsageError(
                    f"term {name!r} compares with a teacher and a Classifier has none: set teacher to null"
                )
        super().__init__(student, terms, optimizer, lr_scheduler, lr_interval, metrics)
        self.input_key = input_key
        if input_key is not None:
            self.input_keys = ("input_key", input_key), ("input_key", input_key)

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """Compute each term from the student's activations and the batch's labels."""
        batch = self.split_batch(batch)
        return self.terms.losses(self.student_activations(batch), None, batch.labels)
