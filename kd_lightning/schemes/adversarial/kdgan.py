"""KDGAN: a classifier and a teacher learn from each other and from a discriminator of labels."""

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
from kd_lightning.core.term import Term
from kd_lightning.losses.common.checks import check_fraction, check_temperature, upcast
from kd_lightning.schemes.adversarial.two_players import TwoPlayerLearner
from kd_lightning.schemes.online.peers import detached


class KDGANOutputs(NamedTuple):
    """The activations of both networks for one batch, and the soft labels that are sampled from their logits."""

    inputs: Any
    student: Activations
    teacher: Activations
    from_student: Tensor
    from_teacher: Tensor
    labels: dict[str, Tensor]


class LabelTerm(nn.Module):
    """The loss of the network that sampled a label: log(1 - D(x, s)), averaged over the batch.

    The discriminator's own loss is `KDGAN.discriminator_loss`.

    Example:
        >>> LabelTerm()(torch.zeros(4))
        tensor(-0.6931)
    """

    def forward(self, scores: Tensor, teacher: None = None, target: Tensor | None = None) -> Tensor:
        """Compute the loss of the discriminator's logits (N,)."""
        return -functional.softplus(upcast(scores)).mean()


class KDGAN(TwoPlayerLearner[KDGANOutputs]):
    """Train a student (classifier) and a teacher on few labels, against a discriminator of labels.

    min_{C,T} max_D E[log D(x, y)] + a E[log(1 - D(x, s_C))] + (1 - a) E[log(1 - D(x, s_T))]
    + b L(z_C, z_T) + c L(z_T, z_C)

    with labels s = softmax((log p + g) / t), sampled by Gumbel noise g, so that the discriminator's gradient reaches
    the network that they are sampled from, and D(x, s) = sigmoid(sum_k s_k h_k(x)) for a network h.

    Xiaojie Wang, Rui Zhang, Yu Sun, Jianzhong Qi: KDGAN: Knowledge Distillation with Generative Adversarial Networks.
    NeurIPS 2018. The two distillation losses are terms: ``student_terms`` teach the student, with the teacher's
    activations held fixed, ``teacher_terms`` the reverse; both may contain a task loss. The authors train all three
    networks on the labels first: pass trained networks.

    The weights a and 1 - a are those of the terms ``adversarial_student`` and ``adversarial_teacher``. The other
    arguments are those of `TwoPlayerLearner`.

    Args:
        student: The classifier, which is the inference network.
        teacher: The teacher, which learns as well; it may be trained already.
        discriminator: h, a network from the inputs to a score for each class.
        student_terms: Further losses of the student, by name.
        teacher_terms: Further losses of the teacher, by name; ``teacher_`` is put before each name.
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
        """Compute the logits of student and teacher."""
        networks = {"student": self.student, "teacher": self.teacher}
        return {name: logits(network, inputs) for name, network in networks.items()}

    def discriminators(self) -> list[nn.Module]:
        """Return the discriminator, in a list."""
        return [self.discriminator]

    def network_outputs(self, batch: Any) -> KDGANOutputs:
        """Run both networks on a batch, and sample a label from each."""
        split = self.split_batch(batch)
        layers = dict.fromkeys([*self.terms.layers("student"), *self.terms.layers("teacher"), "logits"])
        student, teacher = (tap(network, split.student, layers) for network in (self.student, self.teacher))
        drawn = self.draw(student["logits"]), self.draw(teacher["logits"])
        return KDGANOutputs(split.student, student, teacher, *drawn, split.labels)

    def draw(self, logits: Tensor) -> Tensor:
        """Sample a soft label (N, C) for each row of logits, by Gumbel noise from torch's default generator."""
        return functional.gumbel_softmax(upcast(logits).log_softmax(dim=1), self.gumbel_temperature)

    def discriminator_loss(self, outputs: KDGANOutputs) -> Tensor:
        """Compute the discriminator's loss on true labels and on both kinds of sampled ones."""
        target = target_of(outputs.labels)
        if target is None or target.is_floating_point():
            found = ", ".join(f"{name} {value.dtype}" for name, value in outputs.labels.items()) or "no labels"
            raise UsageError(
                f"KDGAN compares sampled labels with true ones and this batch has {found}: give class indices"
            )
        scores = self._scores(outputs.inputs)
        true = functional.softplus(-scores.gather(1, target.unsqueeze(1))).mean()
        student, teacher = (
            (scores * drawn.detach()).sum(dim=1) for drawn in (outputs.from_student, outputs.from_teacher)
        )
        balance = self.terms.all()["adversarial_student"].weight, self.terms.all()["adversarial_teacher"].weight
        return true + sum(w * functional.softplus(s).mean() for w, s in zip(balance, (student, teacher), strict=True))

    def losses(self, outputs: KDGANOutputs) -> dict[str, Tensor]:
        """Compute each network's terms, with the other network's activations held fixed, and its adversarial loss."""
        terms = self.terms.all()
        sides = (
            (self.teaching_student, outputs.student, outputs.teacher),
            (self.teaching_teacher, outputs.teacher, outputs.student),
        )
        found = {
            name: terms[name](own, detached(other), outputs.labels) for names, own, other in sides for name in names
        }
        scores = self._scores(outputs.inputs)
        for name, drawn in (
            ("adversarial_student", outputs.from_student),
            ("adversarial_teacher", outputs.from_teacher),
        ):
            found[name] = terms[name]({"logits": (scores * drawn).sum(dim=1)}, None, {})
        return found

    def _scores(self, inputs: Any) -> Tensor:
        return upcast(logits(self.discriminator, inputs))
