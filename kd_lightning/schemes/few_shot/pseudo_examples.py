"""A few labelled images, and many that are made of them to be what the student has not yet understood."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kd_lightning.core.activations import tap
from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.lightning_internals import attached_trainer
from kd_lightning.core.terms import Term
from kd_lightning.losses import KDLoss
from kd_lightning.schemes.data_free.inversion import InversionDistiller
from kd_lightning.schemes.data_free.inversion_targets import Targets


class PseudoExamplesDistiller(InversionDistiller):
    """The student imitates its teacher on pseudo examples, which move to where the two differ, and learns few labels.

    min over the student of lambda_1 mean_n D_1(y_n, f(x_n)) + lambda_2 mean_m D_2(g(x'_m), f(x'_m))
    x' <- x' + a step of Adam on D_2(g(x'), f(x'))

    Akisato Kimura, Zoubin Ghahramani, Koh Takeuchi, Tomoharu Iwata, Naonori Ueda: Few-shot learning of neural networks
    from scratch by pseudo example optimization. BMVC 2018 (arXiv:1802.03039). The first pseudo examples are mixtures of
    two labelled images, in proportions that are drawn evenly; every `every` batches those of the last round, moved by
    `image_steps` steps, join them, and are held fixed from then on. A term without a teacher is of the labelled images,
    the others are of the pseudo examples.

    Here the teacher is a network, of whatever training; the paper's is a Gaussian process, trained on the same images,
    and weights pseudo examples by how sure of them it is, which is not done here. The other arguments are those of
    `InversionDistiller`.

    Args:
        student: The network that learns and that is deployed.
        teacher: The network that teaches; it is frozen and left out of every checkpoint.
        terms: What the student minimises.
        image_terms: What a pseudo example minimises; a KD term of weight -1 if not given.
        bank_size: How many pseudo examples there will be.
        round_size: How many are made at a time, on each process.
        every: Batches from one round to the next.
        image_steps: Steps of a pseudo example in a round.
        image_optimizer: Builds the optimizer of a round's; Adam at a rate of .1 if not given, the paper's is .02.

    Raises:
        UsageError: As `InversionDistiller`, or the terms are not of both kinds.

    Example:
        >>> from kd_lightning.losses import TaskLoss
        >>> from kd_lightning.networks import StudentConvNet, TeacherConvNet
        >>> terms = {"task": Term(TaskLoss(), teacher=None), "kd": Term(KDLoss(temperature=1.0))}
        >>> players, small = (StudentConvNet(), TeacherConvNet()), {"bank_size": 8, "round_size": 8, "image_steps": 2}
        >>> learner = PseudoExamplesDistiller(*players, terms, **small)
        >>> batch = torch.rand(4, 3, 28, 28), torch.tensor([3, 7, 1, 0]), torch.arange(4)
        >>> sorted(learner.compute_losses(batch))
        ['kd', 'task']
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        terms: dict[str, Term],
        image_terms: dict[str, Term] | None = None,
        bank_size: int = 10_000,
        round_size: int = 1250,
        every: int = 100,
        image_steps: int = 10,
        image_optimizer: OptimizerCallable | None = None,
        size: int = 28,
        channels: int = 3,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        super().__init__(
            student,
            teacher,
            terms,
            {"apart": Term(KDLoss(temperature=1.0), weight=-1.0)} if image_terms is None else image_terms,
            _Nothing(),
            bank_size,
            round_size,
            every,
            image_steps,
            image_optimizer,
            jitter=0,
            size=size,
            channels=channels,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_interval=lr_interval,
            metrics=metrics,
        )
        self.of_labels = [name for name, term in terms.items() if term.teacher is None]
        self.of_examples = [name for name, term in terms.items() if term.teacher is not None]
        if not self.of_labels or not self.of_examples:
            raise UsageError("terms must have one of the labels (teacher=None) and one with the teacher, at least")
        self._labelled: Tensor | None = None

    def begin(self, count: int) -> Tensor:
        """Mixtures of two labelled images at first, and then this process's pseudo examples of the last round."""
        number = self._batches_done() // self.every
        if number:
            rank = 0 if attached_trainer(self) is None else self.global_rank
            start = (number - 1) * self._per_round() + rank * count
            return self.bank[start : start + count].clone()
        assert self._labelled is not None
        images = self._labelled[:, :1]
        one, other = (images[torch.randint(len(images), (count,), device=images.device)] for _ in range(2))
        return one.lerp(other, torch.rand(count, 1, 1, 1, device=images.device))

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """The terms of labelled images and of pseudo examples; a round of new ones comes first where it is due."""
        split = self.split_batch(batch)
        self._labelled = split.student
        done = self._batches_done()
        if done % self.every == 0:
            self._add_round(done // self.every)
        images = self._shown(self.bank[self._rows(batch)])
        layers = self.terms.layers("student")
        teacher = tap(self.teacher, images, self.terms.layers("teacher"))
        taught = self.terms.losses(tap(self.student, images, layers), teacher, {}, self.of_examples)
        told = self.terms.losses(tap(self.student, split.student, layers), None, split.labels, self.of_labels)
        return {name: (told | taught)[name] for name in self.terms.all()}


class _Nothing(Targets):
    """Pseudo examples are of nothing in particular."""

    def forward(self, count: int, teacher: nn.Module) -> Tensor:
        return torch.zeros(count, 0, device=next(teacher.parameters()).device)
