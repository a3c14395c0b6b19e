"""Rocket launching: a large network on the student's lower layers teaches it while both learn."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kd_lightning.core.activations import Activations, tap
from kd_lightning.core.errors import InputRefusedError, UsageError
from kd_lightning.core.learner import Learner, LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.term import Term
from kd_lightning.networks.wrappers.branches import check_layer
from kd_lightning.schemes.online.peers import detached


class RocketLaunching(Learner):
    """A light student and a booster share lower layers and learn together; the student imitates the booster's logits.

    L = CE(z_l, y) + CE(z_b, y) + w ||z_l - z_b||^2, with z_b held fixed in the last: its gradient reaches the student,
    the lower layers included, and not the booster's own layers (the paper's gradient block)

    Guorui Zhou, Ying Fan, Runpeng Cui, Weijie Bian, Xiaoqiang Zhu, Kun Gai: Rocket Launching: A Universal and Efficient
    Framework for Training Well-performing Light Net. AAAI, 2018 (arXiv:1708.04106). The authors' code has w = 0.03 and
    sums over the C classes: 0.03 C is the weight of a `LogitMSELoss`, which averages over them. In that code the light
    and the booster net each have their own BatchNorm layers in shared blocks; here the shared layers run once.

    Both networks are trained by one optimizer. A term without a teacher is summed over both; in the others the booster
    is the teacher; each is logged as ``train/<term>``. The student is the inference network, and ``val/acc/booster`` is
    the accuracy of the booster. The baseline is the student trained alone, a `Classifier`.

    Args:
        student: The light network.
        booster: A network that takes the output of the student's `layer` as its input.
        layer: Dotted name of the last shared layer.
        terms: The losses by name, each with its addresses and weight.
        optimizer: Builds the optimizer from the parameters of both networks and the terms.
        lr_scheduler: Builds a learning-rate scheduler from the optimizer.
        lr_interval: ``step`` or ``epoch``: when the scheduler steps.
        metrics: Any torchmetrics collection to evaluate by; by default that of the kind of label.

    Raises:
        UsageError: The student has no such layer (the nearest names are given), or the two share parameters; at a
            batch: the booster cannot take the layer's output.

    Example:
        >>> from kd_lightning import Term
        >>> from kd_lightning.losses import LogitMSELoss, TaskLoss
        >>> from kd_lightning.networks import ConvNet, StudentConvNet
        >>> terms = {"task": Term(TaskLoss(), teacher=None), "hint": Term(LogitMSELoss(), weight=0.3)}
        >>> learner = RocketLaunching(StudentConvNet(), ConvNet(width=128, in_channels=32), "conv.1", terms)
        >>> sorted(learner.compute_losses((torch.zeros(2, 3, 28, 28), torch.tensor([3, 7]))))
        ['hint', 'task']
    """

    def __init__(
        self,
        student: nn.Module,
        booster: nn.Module,
        layer: str,
        terms: dict[str, Term],
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        super().__init__(student, terms, optimizer, lr_scheduler, lr_interval, metrics)
        check_layer(student, layer)
        if set(student.parameters()) & set(booster.parameters()):
            raise UsageError(
                "student and booster share parameters: the shared layers belong to the student, up to `layer`; "
                "build the booster from the layers above it alone"
            )
        self.booster = booster
        self.layer = layer
        self.evaluated_networks = ["student", "booster"]

    def both_activations(self, inputs: Any) -> tuple[Activations, Activations]:
        """Return the activations of student and booster that the terms address; the shared layers run once."""
        student_layers = dict.fromkeys([*self.terms.layers("student"), self.layer, "logits"])
        booster_layers = dict.fromkeys([*self.terms.layers("student"), *self.terms.layers("teacher"), "logits"])
        student = tap(self.student, inputs, student_layers)
        try:
            return student, tap(self.booster, student[self.layer], booster_layers)
        except InputRefusedError as error:
            raise UsageError(
                f"the booster cannot take the output {tuple(student[self.layer].shape)} of the student's layer "
                f"{self.layer!r} ({error.__cause__}): build it for that, e.g. with "
                f"in_channels={student[self.layer].shape[1]}"
            ) from error

    def evaluated_logits(self, inputs: Any) -> dict[str, Tensor]:
        """Compute the logits of student and booster."""
        student, booster = self.both_activations(inputs)
        return {"student": student["logits"], "booster": booster["logits"]}

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """Compute each term: for both networks where it has no teacher, else for the student against the booster."""
        batch = self.split_batch(batch)
        student, booster = self.both_activations(batch.student)
        teacher = detached(booster)
        losses: dict[str, Tensor] = {}
        for name, term in self.terms.all().items():
            students = [student, booster] if term.teacher is None else [student]
            losses[name] = torch.stack([term(own, teacher, batch.labels) for own in students]).sum()
        return losses
