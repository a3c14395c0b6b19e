"""SyntheticInputsDistiller: a student learns from its teacher on real inputs and on generated ones."""

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
from kd_lightning.core.term import Term
from kd_lightning.losses import adversarial_loss, discrimination_loss
from kd_lightning.networks import Generator
from kd_lightning.networks.generators import check_generator
from kd_lightning.schemes.adversarial.two_players import TwoPlayerLearner
from kd_lightning.schemes.frozen_teacher import FrozenTeacher


class SyntheticOutputs(NamedTuple):
    """Real and generated inputs, and the activations of student and teacher for all of them, the real ones first."""

    real: Tensor
    generated: Tensor
    classes: Tensor | None
    student: Activations
    teacher: Activations
    labels: dict[str, Tensor]


class GeneratorAdversarialLoss(nn.Module):
    """The generator's loss: `kd_lightning.losses.adversarial_loss` of the discriminator's output for its images."""

    def forward(self, student: Tensor, teacher: None = None, target: Tensor | None = None) -> Tensor:
        """Compute the loss of discriminator outputs (N, 1) or (N, 1 + C)."""
        return adversarial_loss(student, target)


class SyntheticInputsDistiller(FrozenTeacher, TwoPlayerLearner[SyntheticOutputs]):
    """Train a generator to make inputs like the real ones, and the student to imitate its teacher on both.

    Terms with a teacher are computed on N real inputs and N generated ones, which are held fixed there; terms without
    a teacher (the task) are computed on the real ones alone. Generator and discriminator have the losses of
    `kd_lightning.losses.AdversarialLoss`, conditional on the class where the generator has classes.

    Ruishan Liu, Nicolo Fusi, Lester Mackey: Teacher-Student Compression with Generative Adversarial Networks. 2018
    (arXiv:1812.02271): generated inputs in addition to the training set, or instead of it. The paper trains the
    generator first; here all networks learn in the same steps. For inputs without real data see `DataFreeDistiller`.

    The other arguments are those of `TwoPlayerLearner`.

    Args:
        student: The network that is trained, evaluated and exported.
        teacher: The network that teaches; it is frozen, and in no checkpoint.
        generator: Makes the inputs.
        discriminator: Separates them from the real ones, (N, 1); or (N, 1 + C) where the generator has C classes.
        terms: The losses by name; the generator's loss is added as ``generator``.

    Raises:
        UsageError: No term has a teacher, or teacher and student share parameters; at a batch: inputs are no tensor of
            the generator's image shape, or there are no class indices where the generator has classes.

    Example:
        >>> from kd_lightning.losses import KDLoss, TaskLoss
        >>> from kd_lightning.networks import ConvDiscriminator, StudentConvNet, TeacherConvNet
        >>> terms = {"task": Term(TaskLoss(), teacher=None), "kd": Term(KDLoss())}
        >>> players = Generator((3, 28, 28), classes=10), ConvDiscriminator(3, classes=10)
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
        check_generator(generator)
        self.teacher = teacher
        self.generator = generator
        self.discriminator = discriminator

    def discriminators(self) -> list[nn.Module]:
        """Return the discriminator, in a list."""
        return [self.discriminator]

    def network_outputs(self, batch: Any) -> SyntheticOutputs:
        """Generate as many inputs as the batch has, and run student and teacher on all of them."""
        split = self.split_batch(batch)
        real = cast("Tensor", split.student)
        noise, *classes = self.generator.draw(len(real), real.device)
        generated = self.generator(noise, *classes)
        if generated.shape != real.shape:
            raise UsageError(
                f"generated inputs {tuple(generated.shape)} and real ones {tuple(real.shape)} differ: set the "
                f"generator's image_shape to {[*real.shape[1:]]}"
            )
        both = torch.cat((real, generated.detach()))
        student = tap(self.student, both, self.terms.layers("student"))
        teacher = tap(self.teacher, both, self.terms.layers("teacher"))
        return SyntheticOutputs(real, generated, classes[0] if classes else None, student, teacher, split.labels)

    def discriminator_loss(self, outputs: SyntheticOutputs) -> Tensor:
        """Compute the discriminator's loss on real and generated inputs, and on the class of both."""
        real, generated = self.discriminator(outputs.real), self.discriminator(outputs.generated.detach())
        if outputs.classes is None:
            return discrimination_loss(generated, real)
        target = target_of(outputs.labels)
        if target is None or target.is_floating_point():
            raise UsageError("the generator has classes and the batch has no class indices: set its classes to 0")
        of_classes = functional.cross_entropy(real[:, 1:].float(), target)
        of_classes = of_classes + functional.cross_entropy(generated[:, 1:].float(), outputs.classes)
        return discrimination_loss(generated[:, :1], real[:, :1]) + of_classes

    def losses(self, outputs: SyntheticOutputs) -> dict[str, Tensor]:
        """Compute terms without a teacher on the real inputs, the others on all, and the generator's loss."""
        terms, n = self.terms.all(), len(outputs.real)
        on_real = {name: value[:n] for name, value in outputs.student.items()}
        found = {
            name: term(on_real, None, outputs.labels)
            if term.teacher is None
            else term(outputs.student, outputs.teacher, {})
            for name, term in terms.items()
            if name != "generator"
        }
        labels = {} if outputs.classes is None else {"target": outputs.classes}
        scores = self.discriminator(outputs.generated)
        return found | {"generator": terms["generator"]({"logits": scores}, None, labels)}
