"""A generator's images beside the real ones: more for a teacher to speak about than there is to see."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MetricCollection

from kd_lightning.core.activations import Activations, tap
from kd_lightning.core.batch import target_of
from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.terms import Term
from kd_lightning.losses import adversarial_loss, discrimination_loss
from kd_lightning.networks import Generator
from kd_lightning.schemes.adversarial.two_players import TwoPlayerLearner
from kd_lightning.schemes.frozen_teacher import FrozenTeacher


class Mixed(NamedTuple):
    """Real inputs and generated ones, and what student and teacher gave for all of them, the real ones first."""

    real: Tensor
    generated: Tensor
    classes: Tensor | None
    student: Activations
    teacher: Activations
    labels: dict[str, Tensor]


class GeneratorAdversarialLoss(nn.Module):
    """The generator's term: `kd_lightning.losses.adversarial_loss` of what the discriminator says of its images."""

    def forward(self, student: Tensor, teacher: None = None, target: Tensor | None = None) -> Tensor:
        """Of verdicts (N, 1) or (N, 1 + C)."""
        return adversarial_loss(student, target)


class SyntheticInputsDistiller(FrozenTeacher, TwoPlayerLearner[Mixed]):
    """A generator learns to draw inputs like the real ones, and the student learns from its teacher on both.

    Terms with a teacher are of N real inputs and N generated ones, those without (the task) of the real ones alone; the
    generated ones are held fixed there. Generator and discriminator play as in `kd_lightning.losses.AdversarialLoss`,
    conditional on the class where the generator has classes.

    Ruishan Liu, Nicolo Fusi, Lester Mackey: Teacher-Student Compression with Generative Adversarial Networks. 2018
    (arXiv:1812.02271): generated inputs, beside or instead of the training set, are what a student lacks. The paper
    trains the generator first; here all learn at the same steps. Inputs without any real data are another family.

    The other arguments are those of `TwoPlayerLearner`.

    Args:
        student: The network that learns and that is deployed.
        teacher: The network that teaches; it is frozen and left out of every checkpoint.
        generator: Draws the inputs.
        discriminator: Tells them from the real ones, (N, 1); or (N, 1 + C) where the generator has C classes.
        terms: The losses by name; the generator's is called ``generator``.

    Raises:
        UsageError: No term has a teacher, or teacher and student share parameters; at a batch: inputs are no tensor of
            the generated ones' shape, or there are no class indices where the generator has classes.

    Example:
        >>> from kd_lightning.losses import KDLoss, TaskLoss
        >>> from kd_lightning.networks import ConvDiscriminator, StudentConvNet, TeacherConvNet
        >>> terms = {"task": Term(TaskLoss(), teacher=None), "kd": Term(KDLoss())}
        >>> players = Generator(classes=10), ConvDiscriminator(3, classes=10)
        >>> learner = SyntheticInputsDistiller(StudentConvNet(), TeacherConvNet(), *players, terms)
        >>> sorted(learner.compute_losses((torch.zeros(2, 3, 28, 28), torch.tensor([3, 7]))))
        ['generator', 'kd', 'task']
    """

    teacher_sees_data = False

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        generator: Generator,
        discriminator: nn.Module,
        terms: dict[str, Term],
        optimizer: OptimizerCallable = torch.optim.Adam,
        discriminator_optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        if not any(term.teacher is not None for term in terms.values()):
            raise UsageError("no term has a teacher, and generated inputs have no labels: add one, e.g. KDLoss")
        terms = terms | {"generator": Term(GeneratorAdversarialLoss(), teacher=None)}
        super().__init__(student, terms, optimizer, discriminator_optimizer, lr_scheduler, lr_interval, metrics)
        self.teacher = teacher
        self.generator = generator
        self.discriminator = discriminator

    def discriminators(self) -> list[nn.Module]:
        """The one."""
        return [self.discriminator]

    def watch(self, batch: Any) -> Mixed:
        """Draws as many inputs as the batch has, and asks student and teacher about all."""
        split = self.split_batch(batch)
        real = cast("Tensor", split.student)
        noise, *classes = self.generator.draw(len(real), real.device)
        generated = self.generator(noise, *classes)
        if generated.shape != real.shape:
            raise UsageError(
                f"generated inputs {tuple(generated.shape)} and real ones {tuple(real.shape)} differ: set the "
                "generator's channels and size"
            )
        both = torch.cat((real, generated.detach()))
        student = tap(self.student, both, self.terms.layers("student"))
        teacher = tap(self.teacher, both, self.terms.layers("teacher"))
        return Mixed(real, generated, classes[0] if classes else None, student, teacher, split.labels)

    def discriminate(self, seen: Mixed) -> Tensor:
        """What the discriminator loses on real and generated inputs, and on the class of both."""
        real, generated = self.discriminator(seen.real), self.discriminator(seen.generated.detach())
        if seen.classes is None:
            return discrimination_loss(generated, real)
        target = target_of(seen.labels)
        if target is None or target.is_floating_point():
            raise UsageError("the generator has classes and the batch has no class indices: set its classes to 0")
        named = functional.cross_entropy(real[:, 1:].float(), target)
        named = named + functional.cross_entropy(generated[:, 1:].float(), seen.classes)
        return discrimination_loss(generated[:, :1], real[:, :1]) + named

    def losses(self, seen: Mixed) -> dict[str, Tensor]:
        """Terms without a teacher on what is real, the others on everything, and the generator's own."""
        terms, n = self.terms.all(), len(seen.real)
        on_real = {name: value[:n] for name, value in seen.student.items()}
        found = {
            name: term(on_real, None, seen.labels) if term.teacher is None else term(seen.student, seen.teacher, {})
            for name, term in terms.items()
            if name != "generator"
        }
        labels = {} if seen.classes is None else {"target": seen.classes}
        verdict = self.discriminator(seen.generated)
        return found | {"generator": terms["generator"]({"logits": verdict}, None, labels)}
