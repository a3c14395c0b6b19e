"""Self-distillation: layers of a network learn from other layers of the same forward pass."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kd_lightning.core.activations import tap
from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import Learner, LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.term import Term
from kd_lightning.networks import MultiExitNetwork
from kd_lightning.schemes.online.peers import detached


class SelfDistiller(Learner):
    """The student is its own teacher: both sides of every term are layers of one forward pass.

    The teacher's side is detached, so that a layer learns from a deeper one and not the other way round. The terms'
    addresses define which layer teaches which.

    The student is the only network and is trained; `deploy` chooses the inference network. Each term is logged as
    ``train/<term>``. Every classifier of a `kd_lightning.networks.MultiExitNetwork` must have a term, and is evaluated
    (``val/acc/exits.0``, ...). The baseline is the same network with the terms on labels alone.

    Args:
        student: The network to train.
        terms: The losses by name, each with its addresses and weight.
        deploy: Dotted name of the inference network: ``student``, or a part of it, such as ``student.network`` for a
            network without its exits.
        optimizer: Builds the optimizer from the parameters that learn.
        lr_scheduler: Builds a learning-rate scheduler from the optimizer.
        lr_interval: ``step`` or ``epoch``: when the scheduler steps.
        metrics: Any torchmetrics collection to evaluate by; by default that of the kind of label.

    Raises:
        UsageError: `deploy` is no network in the student, or an exit has no term to learn by.

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
            raise UsageError(f"deploy={deploy!r} is no network that can be used alone: give 'student' or a part of it")
        self.deploy = deploy
        self._logit_layers = {deploy: deploy.partition(".")[2] or "logits"}  # by the evaluated network's name
        if isinstance(student, MultiExitNetwork):
            self._add_exits(student)
        self.evaluated_networks = list(self._logit_layers)

    @property
    def inference_network_name(self) -> str:
        """Name of the inference network, as `deploy` gives it."""
        return self.deploy

    def evaluated_logits(self, inputs: Any) -> dict[str, Tensor]:
        """Compute the logits of the inference network and of all exits."""
        activations = tap(self.student, inputs, self._logit_layers.values())
        return {name: activations[layer] for name, layer in self._logit_layers.items()}

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """Compute each term, with the activations of one forward pass on both sides."""
        batch = self.split_batch(batch)
        layers = dict.fromkeys([*self.terms.layers("student"), *self.terms.layers("teacher")])
        activations = tap(self.student, batch.student, layers)
        return self.term_losses(activations, detached(activations), batch.labels)

    def _add_exits(self, student: MultiExitNetwork) -> None:
        answering = self.deploy.partition(".")[2] or student.output_layer
        learning = {student.output_layer if layer == "logits" else layer for layer in self.terms.layers("student")}
        for layer in student.classifiers:
            if layer not in learning:
                raise UsageError(f"no term has {layer!r} as its student, and this exit would not learn: add a term")
            if layer != answering:
                self._logit_layers[layer] = layer
