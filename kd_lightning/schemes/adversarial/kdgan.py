"""KDGAN: a classifier and a teacher learn from each other, and to give labels that a discriminator takes for true."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MetricCollection

from kd_lightning.core.activations import Activations, logits, tap
from kd_lightning.core.batch import target_of
from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.terms import Term
from kd_lightning.losses.common.checks import check_fraction, check_temperature, upcast
from kd_lightning.schemes.adversarial.two_players import TwoPlayerLearner
from kd_lightning.schemes.online.peers import detached


class Labelling(NamedTuple):
    """What the players gave for one batch: the discriminator judges the samples for these inputs."""

    inputs: Any
    student: Activations
    teacher: Activations
    from_student: Tensor
    from_teacher: Tensor
    labels: dict[str, Tensor]


class LabelTerm(nn.Module):
    """How far samples are from being taken for true labels: log(1 - D(x, s)), averaged over the batch.

    It is what the label's author minimises; beside it stands the discriminator's own, of which `KDGAN` makes the rest.

    Example:
        >>> LabelTerm()(torch.zeros(4))
        tensor(-0.6931)
    """

    def forward(self, verdict: Tensor, teacher: None = None, target: Tensor | None = None) -> Tensor:
        """Of what the discriminator says, (N,) logits."""
        return -functional.softplus(upcast(verdict)).mean()


class KDGAN(TwoPlayerLearner[Labelling]):
    """A student (classifier) and a teacher that learn from few labels, against a discriminator of labels.

    min_{C,T} max_D E[log D(x, y)] + a E[log(1 - D(x, s_C))] + (1 - a) E[log(1 - D(x, s_T))]
    + b L(z_C, z_T) + c L(z_T, z_C)

    with labels s = softmax((log p + g) / t), drawn by Gumbel noise g, so that the discriminator's gradient reaches
    whoever gave them, and D(x, s) = sigmoid(sum_k s_k h_k(x)) of a network h.

    Xiaojie Wang, Rui Zhang, Yu Sun, Jianzhong Qi: KDGAN: Knowledge Distillation with Generative Adversarial Networks.
    NeurIPS 2018. The two distillation losses are terms: ``student_terms`` teach the student, with the teacher's
    activations held fixed, ``teacher_terms`` the other way round; both may hold a task loss. The authors train all
    three networks on the labels before: give them as they were trained.

    The weights a and 1 - a are those of the terms ``adversarial_student`` and ``adversarial_teacher``. The other
    arguments are those of `TwoPlayerLearner`.

    Args:
        student: The classifier, which is deployed.
        teacher: The teacher, which learns as well; it may have been trained before.
        discriminator: h, a network from the inputs to a score for each class.
        student_terms: What the student minimises beside, by name.
        teacher_terms: What the teacher minimises beside, by name; ``teacher_`` goes before each name.
        balance: a, in [0, 1].
        gumbel_temperature: t, of the sampled labels.

    Raises:
        UsageError: An argument is out of its range, or networks share parameters; at a batch: it has no class indices.

    Example:
        >>> from kd_lightning.losses import LogitMSELoss, TaskLoss
        >>> from kd_lightning.networks import StudentConvNet, TeacherConvNet
        >>> task, mimic = Term(TaskLoss(), teacher=None), Term(LogitMSELoss())
        >>> learner = KDGAN(StudentConvNet(), TeacherConvNet(), StudentConvNet(), {"task": task, "kd": mimic}, {})
        >>> sorted(learner.compute_losses((torch.zeros(2, 3, 28, 28), torch.tensor([3, 7]))))
        ['adversarial_student', 'adversarial_teacher', 'kd', 'task']
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        discriminator: nn.Module,
        student_terms: dict[str, Term],
        teacher_terms: dict[str, Term],
        balance: float = 0.5,
        gumbel_temperature: float = 1.0,
        optimizer: OptimizerCallable = torch.optim.Adam,
        discriminator_optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        balance = check_fraction(balance, "balance")
        taught = {f"teacher_{name}": term for name, term in teacher_terms.items()}
        adversaries = {
            "adversarial_student": Term(LabelTerm(), balance, teacher=None),
            "adversarial_teacher": Term(LabelTerm(), 1 - balance, teacher=None),
        }
        terms = student_terms | taught | adversaries
        super().__init__(student, terms, optimizer, discriminator_optimizer, lr_scheduler, lr_interval, metrics)
        self.teacher = teacher
        self.discriminator = discriminator
        players = [parameter for network in (student, teacher, discriminator) for parameter in network.parameters()]
        if len(set(players)) < len(players):
            raise UsageError("two of the three networks share parameters: copy one of them")
        self.teaching_student = list(student_terms)
        self.teaching_teacher = list(taught)
        self.gumbel_temperature = check_temperature(gumbel_temperature, "gumbel_temperature")
        self.evaluated_networks = ["student", "teacher"]

    def evaluated_logits(self, inputs: Any) -> dict[str, Tensor]:
        """The student's logits and the teacher's."""
        networks = {"student": self.student, "teacher": self.teacher}
        return {name: logits(network, inputs) for name, network in networks.items()}

    def discriminators(self) -> list[nn.Module]:
        """The one."""
        return [self.discriminator]

    def watch(self, batch: Any) -> Labelling:
        """What both networks say of a batch, and a label that is drawn from each."""
        split = self.split_batch(batch)
        layers = dict.fromkeys([*self.terms.layers("student"), *self.terms.layers("teacher"), "logits"])
        student, teacher = (tap(network, split.student, layers) for network in (self.student, self.teacher))
        drawn = self.draw(student["logits"]), self.draw(teacher["logits"])
        return Labelling(split.student, student, teacher, *drawn, split.labels)

    def draw(self, logits: Tensor) -> Tensor:
        """A soft label (N, C) for each row of logits, by Gumbel noise from torch's default generator."""
        return functional.gumbel_softmax(upcast(logits).log_softmax(dim=1), self.gumbel_temperature)

    def discriminate(self, seen: Labelling) -> Tensor:
        """What the discriminator loses on true labels and on both kinds of drawn ones."""
        target = target_of(seen.labels)
        if target is None or target.is_floating_point():
            found = ", ".join(f"{name} {value.dtype}" for name, value in seen.labels.items()) or "no labels"
            raise UsageError(f"KDGAN tells drawn labels from true ones and this batch has {found}: give class indices")
        scores = self._scores(seen.inputs)
        true = functional.softplus(-scores.gather(1, target.unsqueeze(1))).mean()
        student, teacher = ((scores * drawn.detach()).sum(dim=1) for drawn in (seen.from_student, seen.from_teacher))
        balance = self.terms.all()["adversarial_student"].weight, self.terms.all()["adversarial_teacher"].weight
        return true + sum(w * functional.softplus(s).mean() for w, s in zip(balance, (student, teacher), strict=True))

    def losses(self, seen: Labelling) -> dict[str, Tensor]:
        """Each side's terms, with the other side held fixed, and what the discriminator makes of their labels."""
        terms = self.terms.all()
        sides = (self.teaching_student, seen.student, seen.teacher), (self.teaching_teacher, seen.teacher, seen.student)
        found = {name: terms[name](own, detached(other), seen.labels) for names, own, other in sides for name in names}
        scores = self._scores(seen.inputs)
        for name, drawn in (("adversarial_student", seen.from_student), ("adversarial_teacher", seen.from_teacher)):
            found[name] = terms[name]({"logits": (scores * drawn).sum(dim=1)}, None, {})
        return found

    def _scores(self, inputs: Any) -> Tensor:
        return upcast(logits(self.discriminator, inputs))
