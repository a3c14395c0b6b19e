"""Pseudo examples: mixtures of a few labelled images, moved to where student and teacher differ."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kd_lightning.core.activations import tap
from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.term import Term
from kd_lightning.losses import KDLoss
from kd_lightning.networks.image_format import ImageShape, PerChannel
from kd_lightning.schemes.data_free.inversion import InversionDistiller
from kd_lightning.schemes.data_free.inversion_targets import Targets
from kd_lightning.schemes.data_free.pixel_inversion import PixelInversion
from kd_lightning.schemes.data_free.synthesizer import SynthesisRound, Synthesizer


class PseudoExampleSynthesis(PixelInversion):
    """Mix pairs of labelled images at first, and move the last round's images up the student's loss after that.

    x' <- x' + a step of Adam on D_2(g(x'), f(x')), of the teacher g and the student f

    The first pseudo examples are mixtures of two images of the training batch, in proportions that are drawn uniformly.
    Each later round copies this process's images of the last round and moves the copies by `synthesis_steps` steps.

    Args:
        image_shape: (C, H, W) of the images, as the data module gives them.
        image_terms: The losses that a pseudo example minimises; a KD term of weight -1 if not given.
        synthesis_steps: Steps of a pseudo example in a round.
        image_optimizer: Builds the optimizer of a round's images; Adam with a learning rate of .1 if not given. The
            paper's rate is .02.
        value_range: The least and the greatest value of a pixel before normalization.
        mean: Mean of the normalization: one number, or one for each channel.
        std: Standard deviation of the normalization: one number, or one for each channel.

    Raises:
        UsageError: As `PixelInversion`; in a round: the batch's images have another shape.

    Example:
        >>> synthesizer = PseudoExampleSynthesis(image_shape=(3, 32, 32), synthesis_steps=2)
        >>> list(synthesizer.image_terms), synthesizer.image_terms["apart"].weight
        (['apart'], -1.0)
    """

    def __init__(
        self,
        image_shape: ImageShape,
        image_terms: dict[str, Term] | None = None,
        synthesis_steps: int = 10,
        image_optimizer: OptimizerCallable | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
        mean: PerChannel = 0.0,
        std: PerChannel = 1.0,
    ) -> None:
        terms = {"apart": Term(KDLoss(temperature=1.0), weight=-1.0)} if image_terms is None else image_terms
        super().__init__(
            terms,
            image_shape,
            NoTargets(),
            synthesis_steps,
            image_optimizer,
            jitter=0,
            value_range=value_range,
            mean=mean,
            std=std,
        )

    def init_images(self, given: SynthesisRound) -> Tensor:
        """Return mixtures of two labelled images in round 0, and copies of this process's last round after that."""
        if given.number:
            return given.bank.own_rows("images", given.number - 1).clone()
        images, count = given.inputs, given.num_images
        if not isinstance(images, Tensor) or images.shape[1:] != self.format.image_shape:
            found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise UsageError(
                f"pseudo examples have image_shape={[*self.format.image_shape]} and the batch's inputs are {found}: "
                "set image_shape to theirs"
            )
        one, other = (images[torch.randint(len(images), (count,), device=images.device)] for _ in range(2))
        return one.lerp(other, torch.rand(count, 1, 1, 1, device=images.device))


class PseudoExamplesDistiller(InversionDistiller):
    """Learn a few labelled images from their labels, and pseudo examples from the teacher's outputs.

    min over the student of lambda_1 mean_n D_1(y_n, f(x_n)) + lambda_2 mean_m D_2(g(x'_m), f(x'_m))

    Akisato Kimura, Zoubin Ghahramani, Koh Takeuchi, Tomoharu Iwata, Naonori Ueda: Few-shot learning of neural networks
    from scratch by pseudo example optimization. BMVC 2018 (arXiv:1802.03039). Every `synthesis_interval` batches the
    pseudo examples of the last round, moved, are added to the bank, where they stay fixed. A term without a teacher is
    computed on the labelled images, the others on the pseudo examples.

    Here the teacher is any network; the paper's is a Gaussian process that was trained on the same images, and its
    weighting of pseudo examples by the teacher's certainty is left out. The other arguments are those of
    `InversionDistiller`.

    Args:
        student: The network that is trained, evaluated and exported.
        teacher: The network that teaches; it is frozen, and in no checkpoint.
        terms: The losses of the student by name, of both kinds.
        synthesizer: Makes the pseudo examples: a `PseudoExampleSynthesis`.
        memory_size: The number of pseudo examples when the bank is full.
        synthesis_batch_size: Pseudo examples that each process makes in a round.
        synthesis_interval: Batches from one round to the next.

    Raises:
        UsageError: As `InversionDistiller`, or the terms are not of both kinds.

    Example:
        >>> from kd_lightning.losses import TaskLoss
        >>> from kd_lightning.networks import StudentConvNet, TeacherConvNet
        >>> terms = {"task": Term(TaskLoss(), teacher=None), "kd": Term(KDLoss(temperature=1.0))}
        >>> synthesizer = PseudoExampleSynthesis(image_shape=(3, 32, 32), synthesis_steps=2)
        >>> small = {"memory_size": 8, "synthesis_batch_size": 8}
        >>> learner = PseudoExamplesDistiller(StudentConvNet(), TeacherConvNet(), terms, synthesizer, **small)
        >>> batch = torch.rand(4, 3, 32, 32), torch.tensor([3, 7, 1, 0]), torch.arange(4)
        >>> learner.on_train_batch_start(batch, 0)  # Lightning calls it before each step
        >>> sorted(learner.compute_losses(batch))
        ['kd', 'task']
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        terms: dict[str, Term],
        synthesizer: Synthesizer,
        memory_size: int = 10_000,
        synthesis_batch_size: int = 1250,
        synthesis_interval: int = 100,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        super().__init__(
            student,
            teacher,
            terms,
            synthesizer,
            memory_size,
            synthesis_batch_size,
            synthesis_interval,
            optimizer,
            lr_scheduler,
            lr_interval,
            metrics,
        )
        self.labelled_terms = [name for name, term in terms.items() if term.teacher is None]
        self.example_terms = [name for name, term in terms.items() if term.teacher is not None]
        if not self.labelled_terms or not self.example_terms:
            raise UsageError("terms must have one of the labels (teacher=None) and one with the teacher, at least")

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """Compute the terms of the labelled images and those of pseudo examples from the bank."""
        split = self.split_batch(batch)
        images = self.bank.column("images")[self.choose_rows(batch)]
        layers = self.terms.layers("student")
        teacher = tap(self.teacher, images, self.terms.layers("teacher"))
        of_examples = self.terms.losses(tap(self.student, images, layers), teacher, {}, self.example_terms)
        of_labels = self.terms.losses(tap(self.student, split.student, layers), None, split.labels, self.labelled_terms)
        return {name: (of_labels | of_examples)[name] for name in self.terms.all()}


class NoTargets(Targets):
    """Targets without a value, for images that are optimised for no label."""

    def forward(self, count: int, teacher: nn.Module) -> Tensor:
        """Return an empty tensor (count, 0)."""
        return torch.zeros(count, 0, device=next(teacher.parameters()).device)
