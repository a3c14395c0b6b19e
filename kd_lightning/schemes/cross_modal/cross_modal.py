"""Cross-modal distillation: teacher and student take different modalities of the same sample."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torchmetrics import MetricCollection

from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.term import Term
from kd_lightning.schemes.offline import OfflineDistiller


class CrossModalDistiller(OfflineDistiller):
    """A student of one modality learns from a frozen teacher of another, on samples that have both.

    Saurabh Gupta, Judy Hoffman, Jitendra Malik: Cross Modal Distillation for Supervision Transfer. CVPR 2016
    (arXiv:1507.00448). The pairs need no labels: a term whose target is null, such as that of `KDLoss` and of losses on
    features, uses none; terms with a target may stand beside it. Evaluation runs the student on its own modality, and
    needs labels.

    The student is trained and is the inference network; the teacher is frozen. The ablation is the same run with the
    pairs shuffled, which the data sets (`kd_lightning.data.PairedViews(shuffled=...)`). Logged are the values of
    `OfflineDistiller`.

    A batch is a mapping of modalities and labels, from `kd_lightning.data.PairedViews` or your own data.

    Args:
        student: The network to train, on its own modality alone; the inference network.
        teacher: The network that teaches; it is frozen and excluded from every checkpoint.
        terms: The losses by name, each with its addresses and weight.
        modalities: The input of each side, ``{teacher: <name>, student: <name>}``, by its name in the batch. A list of
            names gives several, to a network that takes them by name, such as `kd_lightning.networks.ModalityEnsemble`.
        optimizer: Builds the optimizer from the parameters that learn.
        lr_scheduler: Builds a learning-rate scheduler from the optimizer.
        lr_interval: ``step`` or ``epoch``: when the scheduler steps.
        metrics: Any torchmetrics collection to evaluate by; by default that of the kind of label.

    Raises:
        UsageError: The keys of `modalities` are not teacher and student; at a batch: it is no mapping or lacks one of
            the inputs.

    Example:
        >>> from kd_lightning.losses import KDLoss
        >>> from kd_lightning.networks import StudentConvNet, TeacherConvNet
        >>> modalities = {"teacher": "image", "student": "depth"}
        >>> learner = CrossModalDistiller(StudentConvNet(), TeacherConvNet(), {"kd": Term(KDLoss())}, modalities)
        >>> batch = {"image": torch.zeros(2, 3, 28, 28), "depth": torch.ones(2, 3, 28, 28)}
        >>> list(learner.compute_losses(batch))
        ['kd']
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        terms: dict[str, Term],
        modalities: dict[str, str | list[str]],
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        super().__init__(student, teacher, terms, optimizer, lr_scheduler, lr_interval, metrics)
        if set(modalities) != {"teacher", "student"}:
            raise UsageError(
                f"modalities={modalities} must have the keys teacher and student: {{teacher: <name>, student: <name>}}"
            )
        self.modalities = modalities
        self.input_keys = (
            ("modalities.student", modalities["student"]),
            ("modalities.teacher", modalities["teacher"]),
        )
