"""Self-distillation: a network whose deeper layers teach the shallower ones."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kd_lightning.core.activations import tap
from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import Learner, LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.terms import Term
from kd_lightning.networks import MultiExitNetwork
from kd_lightning.schemes.online.peers import detached


class SelfDistiller(Learner):
    """The student is its own teacher: both sides of every term are layers of one forward pass.

    The teacher's side is held fixed, so that a layer is pulled to what a deeper one gives and the deeper one is not
    pulled back. Which layer teaches which is a matter of the terms' addresses.

    Every classifier of a `kd_lightning.networks.MultiExitNetwork` must have a term, and is evaluated
    (``val/acc/exits.0``, ...).

    Args:
        student: The network that learns from itself.
        terms: The losses by name, each with its addresses and weight.
        deploy: Dotted name of the network that is deployed: ``student``, or a part of it, such as ``student.network``
            to leave its exits out.
        optimizer: Builds the optimizer from the parameters that learn.
        lr_scheduler: Builds a learning-rate scheduler from the optimizer.
        lr_interval: Whether the scheduler moves at each optimizer step or at each epoch.
        metrics: Any torchmetrics collection to evaluate by; by default that of the kind of label.

    Raises:
        UsageError: `deploy` is no network in the student, or an exit has no term and would not learn.

    Example:
        >>> from kd_lightning import Term
        >>> from kd_lightning.losses import SADLoss, TaskLoss
        >>> from kd_lightning.networks import StudentConvNet
        >>> terms = {
        ...     "task": Term(TaskLoss(), teacher=None),
        ...     "sad": Term(SADLoss(), weight=0.1, student="conv.1", teacher="conv.3"),
        ... }
        >>> learner = SelfDistiller(StudentConvNet(), terms)
        >>> sorted(learner.compute_losses((torch.zeros(2, 3, 28, 28), torch.tensor([3, 7]))))
        ['sad', 'task']
    """

    def __init__(
        self,
        student: nn.Module,
        terms: dict[str, Term],
        deploy: str = "student",
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        super().__init__(student, terms, optimizer, lr_scheduler, lr_interval, metrics)
        parts = [f"student.{name}".rstrip(".") for name, _ in student.named_modules()]
        if deploy not in parts or (isinstance(student, MultiExitNetwork) and deploy.startswith("student.exits")):
            raise UsageError(
                f"deploy={deploy!r} is no network that could be used alone: give 'student' or a part of it"
            )
        self.deploy = deploy
        self._answers = {deploy: deploy.partition(".")[2] or "logits"}  # the layer that gives a candidate's logits
        if isinstance(student, MultiExitNetwork):
            self._add_exits(student)
        self.evaluated_networks = list(self._answers)

    @property
    def inference_network_name(self) -> str:
        """What `deploy` says."""
        return self.deploy

    def evaluated_logits(self, inputs: Any) -> dict[str, Tensor]:
        """The logits of what is deployed and of all exits."""
        seen = tap(self.student, inputs, self._answers.values())
        return {name: seen[layer] for name, layer in self._answers.items()}

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """The terms of one forward pass, whose activations are on both sides."""
        batch = self.split_batch(batch)
        layers = dict.fromkeys([*self.terms.layers("student"), *self.terms.layers("teacher")])
        seen = tap(self.student, batch.student, layers)
        return self.term_losses(seen, detached(seen), batch.labels)

    def _add_exits(self, student: MultiExitNetwork) -> None:
        answering = self.deploy.partition(".")[2] or student.answering
        taught = {student.answering if layer == "logits" else layer for layer in self.terms.layers("student")}
        for layer in student.classifiers:
            if layer not in taught:
                raise UsageError(f"no term has {layer!r} as its student, so that it would not learn: give it one")
            if layer != answering:
                self._answers[layer] = layer
