"""Adversarial distillation: a discriminator separates teacher from student, and the student learns to mislead it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kd_lightning.core.activations import Activations
from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.term import Term
from kd_lightning.losses import AdversarialLoss
from kd_lightning.schemes.adversarial.two_players import TwoPlayerLearner
from kd_lightning.schemes.frozen_teacher import FrozenTeacher


class PairOutputs(NamedTuple):
    """The activations of student and teacher for one batch."""

    student: Activations
    teacher: Activations
    labels: dict[str, Tensor]


class AdversarialDistiller(FrozenTeacher, TwoPlayerLearner[PairOutputs]):
    """Distill a frozen teacher by any terms, at least one of which has a discriminator.

    min_S max_D E[log D(T(x))] + E[log(1 - D(S(x)))], plus the other terms; the student minimises the form that does not
    saturate, -log D(S(x))

    Zheng Xu, Yen-Chang Hsu, Jiawei Huang: Training Shallow and Thin Networks for Acceleration via Knowledge
    Distillation with Conditional Adversarial Networks. 2018 (arXiv:1709.00513): on logits, conditional. Zhiqiang Shen,
    Zhankui He, Xiangyang Xue: MEAL: Multi-Model Ensemble via Adversarial Learning. AAAI 2019 (arXiv:1812.02425): on the
    features of several layers, one term each. `AdversarialLoss` is such a term.

    The other arguments are those of `TwoPlayerLearner`.

    Args:
        student: The network that is trained, evaluated and exported.
        teacher: The network that teaches; it is frozen, and in no checkpoint.
        terms: The losses by name, each with its addresses and weight.

    Raises:
        UsageError: No term has a discriminator, or teacher and student share parameters that learn.

    Example:
        >>> from kd_lightning.losses import TaskLoss
        >>> from kd_lightning.networks import Discriminator, StudentConvNet, TeacherConvNet
        >>> separated = AdversarialLoss(Discriminator(10, classes=10), classes=10)
        >>> terms = {"task": Term(TaskLoss(), teacher=None), "adversarial": Term(separated)}
        >>> learner = AdversarialDistiller(StudentConvNet(), TeacherConvNet(), terms)
        >>> sorted(learner.compute_losses((torch.zeros(2, 3, 28, 28), torch.tensor([3, 7]))))
        ['adversarial', 'task']
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        terms: dict[str, Term],
        optimizer: OptimizerCallable = torch.optim.Adam,
        discriminator_optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        super().__init__(student, terms, optimizer, discriminator_optimizer, lr_scheduler, lr_interval, metrics)
        if not self.discriminators():
            raise UsageError(
                "no term has a discriminator: give one an AdversarialLoss, or use OfflineDistiller, which needs none"
            )
        self.teacher = teacher

    def adversaries(self) -> list[Term]:
        """Return the terms that have a discriminator."""
        return [term for term in self.terms.all().values() if isinstance(term.loss, AdversarialLoss)]

    def discriminators(self) -> list[nn.Module]:
        """Return the discriminators of the terms."""
        return [cast("AdversarialLoss", term.loss).discriminator for term in self.adversaries()]

    def network_outputs(self, batch: Any) -> PairOutputs:
        """Run student and teacher on a batch."""
        split = self.split_batch(batch)
        return PairOutputs(self.student_activations(split), self.teacher_activations(split), split.labels)

    def discriminator_loss(self, outputs: PairOutputs) -> Tensor:
        """Compute the sum of the discriminators' losses."""
        found = [term(*outputs, measure=term.loss.discriminator_loss) for term in self.adversaries()]  # pyright: ignore
        return torch.stack(found).sum()

    def losses(self, outputs: PairOutputs) -> dict[str, Tensor]:
        """Compute all terms, as the student minimises them."""
        return self.term_losses(*outputs)
