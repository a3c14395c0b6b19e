"""Cross-modal distillation: the teacher sees one view of a sample, the student another."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torchmetrics import MetricCollection

from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.terms import Term
from kd_lightning.schemes.offline import OfflineDistiller


class CrossModalDistiller(OfflineDistiller):
    """A student of one modality learns from a frozen teacher of another, by samples that are seen in both.

    Saurabh Gupta, Judy Hoffman, Jitendra Malik: Cross Modal Distillation for Supervision Transfer. CVPR 2016
    (arXiv:1507.00448). The pairs need no labels: a term whose target is null, as `KDLoss` and losses on features have
    it, does not ask for any, and terms that do are free to stand beside them. Evaluation sees the student's view, and
    needs labels.

    A batch is a mapping of views and labels, as of `kd_lightning.data.PairedViews`, or a user's own.

    Args:
        student: The network that learns and that is deployed; it sees its own view alone.
        teacher: The network that teaches; it is frozen and left out of every checkpoint.
        terms: The losses by name, each with its addresses and weight.
        views: What each of the two sees: ``{teacher: <view>, student: <view>}``, names in the batch. A list of names
            gives several, to a network that takes them by name, such as `kd_lightning.networks.ModalityEnsemble`.
        optimizer: Builds the optimizer from the parameters that learn.
        lr_scheduler: Builds a learning-rate scheduler from the optimizer.
        lr_interval: Whether the scheduler moves at each optimizer step or at each epoch.
        metrics: Any torchmetrics collection to evaluate by; by default that of the kind of label.

    Raises:
        UsageError: `views` names other than teacher and student; at a batch: it is no mapping or lacks a view.

    Example:
        >>> from kd_lightning.losses import KDLoss
        >>> from kd_lightning.networks import StudentConvNet, TeacherConvNet
        >>> views = {"teacher": "image", "student": "depth"}
        >>> learner = CrossModalDistiller(StudentConvNet(), TeacherConvNet(), {"kd": Term(KDLoss())}, views)
        >>> batch = {"image": torch.zeros(2, 3, 28, 28), "depth": torch.ones(2, 3, 28, 28)}
        >>> list(learner.compute_losses(batch))
        ['kd']
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        terms: dict[str, Term],
        views: dict[str, str | list[str]],
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        super().__init__(student, teacher, terms, optimizer, lr_scheduler, lr_interval, metrics)
        if set(views) != {"teacher", "student"}:
            raise UsageError(
                f"views={views} must say what the teacher and the student see: {{teacher: ..., student: ...}}"
            )
        self.views = views
        self.input_keys = ("views.student", views["student"]), ("views.teacher", views["teacher"])
