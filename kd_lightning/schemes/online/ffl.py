"""Feature fusion learning: networks and a classifier of their fused features learn from each other."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from kd_lightning.core.learner import Learner, LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.lookup import choose
from kd_lightning.core.term import Term
from kd_lightning.networks.wrappers.fusion import FeatureFusion
from kd_lightning.schemes.online.peers import detached


class FFL(Learner):
    """The members learn from the fused classifier, which learns from the members' mean; all learn from the labels.

    L = sum_i CE(z_i, y) + CE(z_f, y) + w(t) T^2 [sum_i KL(p_f || p_i) + KL(p_m || p_f)], where p = softmax(z / T),
    z_m = 1/M sum_i z_i, and the first argument of each KL is held fixed

    Jangho Kim, Minsung Hyun, Inseop Chung, Nojun Kwak: Feature Fusion for Online Mutual Knowledge Distillation. ICPR,
    2020 (arXiv:1904.09058). Theirs are 2 members, T = 3, and a w(t) that rises from 0.7 % to 1 in 80 of 300 epochs
    (`SigmoidRampUp`). In their code the fusion has a separate optimizer, with weight decay 1e-5; the members have 1e-4.

    The members, the fusion and its classifier are trained. Every term is summed over the members and the fused
    classifier, and logged as ``train/<term>``. Each of them is evaluated, as ``val/acc/student`` (fused),
    ``val/acc/student.members.0`` and so on, and `deploy` makes any of them the inference network. The baseline is a
    member trained alone, a `Classifier`.

    Args:
        student: The members and the fused classifier.
        terms: The losses on logits, by name.
        deploy: The inference network: ``student``, the fused classifier with all members, or one member, such as
            ``student.members.0``.
        optimizer: Builds the optimizer from the parameters of the student and the terms.
        lr_scheduler: Builds a learning-rate scheduler from the optimizer.
        lr_interval: ``step`` or ``epoch``: when the scheduler steps.
        metrics: Any torchmetrics collection to evaluate by; by default that of the kind of label.

    Raises:
        UsageError: `deploy` is none of these names (the nearest are given).

    Example:
        >>> from kd_lightning import Term
        >>> from kd_lightning.losses import KDLoss, TaskLoss
        >>> from kd_lightning.networks import StudentConvNet
        >>> student = FeatureFusion([StudentConvNet(), StudentConvNet()], ["conv.5", "conv.5"], [32, 32])
        >>> learner = FFL(student, {"task": Term(TaskLoss(), teacher=None), "kd": Term(KDLoss(temperature=3.0))})
        >>> sorted(learner.compute_losses((torch.zeros(2, 3, 28, 28), torch.tensor([3, 7]))))
        ['kd', 'task']
    """

    def __init__(
        self,
        student: FeatureFusion,
        terms: dict[str, Term],
        deploy: str = "student",
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        super().__init__(student, terms, optimizer, lr_scheduler, lr_interval, metrics)
        names = [*(f"student.members.{i}" for i in range(len(student.members))), "student"]
        self.deploy = choose(deploy, names, "deploy={name} is none of the networks in training")
        self.evaluated_networks = names

    @property
    def inference_network_name(self) -> str:
        """Name of the inference network, as `deploy` gives it."""
        return self.deploy

    def evaluated_logits(self, inputs: Any) -> dict[str, Tensor]:
        """Compute the logits of each member and of the fused classifier."""
        members, fused = cast("FeatureFusion", self.student).all_logits(inputs)
        return dict(zip(self.evaluated_networks, [*members, fused], strict=True))

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """Compute each term, summed over the members against the fused classifier and the latter against their mean."""
        batch = self.split_batch(batch)
        *members, fused = self.evaluated_logits(batch.student).values()
        mean = torch.stack(members).mean(dim=0)
        pairs = [({"logits": own}, detached({"logits": fused})) for own in members]
        pairs.append(({"logits": fused}, detached({"logits": mean})))
        return {
            name: torch.stack([term(own, teacher, batch.labels) for own, teacher in pairs]).sum()
            for name, term in self.terms.all().items()
        }
