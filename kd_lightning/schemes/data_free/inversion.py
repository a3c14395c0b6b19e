"""InversionDistiller: a student learns from images that a synthesizer makes of its teacher."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kd_lightning.core.activations import tap
from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.lightning_internals import attached_trainer
from kd_lightning.core.progress import batches_of
from kd_lightning.core.stateless_random import stateless_randint
from kd_lightning.core.term import Term
from kd_lightning.schemes.data_free.image_bank import ImageBank
from kd_lightning.schemes.data_free.synthesizer import SynthesisRound, Synthesizer
from kd_lightning.schemes.frozen_teacher import FrozenTeacher


class InversionDistiller(FrozenTeacher):
    """Fill a bank with synthetic images, a round at a time, and distill a frozen teacher on images drawn from it.

    A round takes place before every `synthesis_interval`-th batch, the first one included, until the bank is full. The
    bank is in every checkpoint. Of a training batch the student uses its ``index`` alone, which chooses the images.

    The synthesizer is the method: `kd_lightning.schemes.PixelInversion` (DeepInversion, ZSKD, metadata) optimises
    pixels, `kd_lightning.schemes.GeneratorInversion` (contrastive model inversion) a generator. While images are made
    the student is in eval. The other arguments are those of `Learner`.

    Args:
        student: The network that is trained, evaluated and exported.
        teacher: The network that teaches; it is frozen, and in no checkpoint.
        terms: The losses of the student on the images; the label ``target`` is the images' own.
        synthesizer: Makes the images.
        memory_size: The number of images when the bank is full.
        synthesis_batch_size: Images that each process makes in a round.
        synthesis_interval: Batches from one round to the next.

    Raises:
        UsageError: There are no terms, a number is out of its range, or teacher and student share parameters; at a
            batch: it has no index.

    Example:
        >>> from kd_lightning.losses import KDLoss, TaskLoss
        >>> from kd_lightning.networks import StudentConvNet, TeacherConvNet
        >>> from kd_lightning.schemes import PixelInversion
        >>> image_terms = {"class": Term(TaskLoss(), student=None)}
        >>> synthesizer = PixelInversion(image_terms, image_shape=(3, 32, 32), synthesis_steps=2)
        >>> players, terms = (StudentConvNet(), TeacherConvNet()), {"kd": Term(KDLoss())}
        >>> learner = InversionDistiller(*players, terms, synthesizer, memory_size=8, synthesis_batch_size=8)
        >>> batch = {"index": torch.arange(4)}
        >>> learner.on_train_batch_start(batch, 0)  # Lightning calls it before each step
        >>> sorted(learner.compute_losses(batch))
        ['kd']
    """

    teacher_sees_data = False
    steps_are_alike = False  # the batch's number decides when images are made and which ones are drawn

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        terms: dict[str, Term],
        synthesizer: Synthesizer,
        memory_size: int = 2560,
        synthesis_batch_size: int = 256,
        synthesis_interval: int = 1,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        super().__init__(student, terms, optimizer, lr_scheduler, lr_interval, metrics)
        given = {"memory_size": memory_size, "synthesis_batch_size": synthesis_batch_size}
        for name, value in (given | {"synthesis_interval": synthesis_interval}).items():
            if value < 1:
                raise UsageError(f"{name}={value} must be at least 1")
        self.teacher = teacher
        self.synthesizer = synthesizer
        self.synthesis_interval = synthesis_interval
        self.bank = ImageBank(memory_size, min(synthesis_batch_size, memory_size), synthesizer.build(teacher))
        self.rounds = 0  # that took place; set before each batch

    def synthetic_images(self, count: int) -> Tensor:
        """Return the last images of the bank, at most `count`, in [0, 1] for a picture."""
        size = self.bank.size_after(self.rounds)
        return self.synthesizer.format.to_unit(self.bank.column("images", size)[max(0, size - count) :])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Add a round of images to the bank where one is due, by the number of completed batches alone."""
        number, rest = divmod(batches_of(self), self.synthesis_interval)
        if not rest and self.bank.size_after(number) < self.bank.memory_size:
            self._add_round(number, batch)
        self.rounds = number + 1

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """Compute the student's unweighted losses of images from the bank, without changing the bank."""
        rows = self.choose_rows(batch)
        images = self.bank.column("images")[rows]
        student = tap(self.student, images, self.terms.layers("student"))
        teacher = tap(self.teacher, images, self.terms.layers("teacher"))
        return self.term_losses(student, teacher, {"target": self.bank.column("targets")[rows]})

    def choose_rows(self, batch: Any) -> Tensor:
        """Choose rows of the bank (N,) by the samples' numbers, so that all processes agree, and by the batch's."""
        index = self.split_batch(batch).labels.get("index")
        if index is None:
            raise UsageError("a batch has no index to choose images by: use NoiseDataModule, or give numbers")
        if not self.rounds:
            raise UsageError("the bank has no images before on_train_batch_start, which Lightning calls in a fit")
        # another image each time that a number comes
        step = index + 1_000_003 * (batches_of(self) + 1)
        return stateless_randint(step, self.bank.size_after(self.rounds), salt=9)

    @torch.enable_grad()
    def _add_round(self, number: int, batch: Any) -> None:
        trainer = attached_trainer(self)
        training = self.student.training
        self.student.eval()
        with nullcontext() if trainer is None else trainer.precision_plugin.train_step_context():
            inputs, count = self.split_batch(batch).student, self.bank.synthesis_batch_size
            rows = self.synthesizer.synthesize(
                SynthesisRound(number, count, self.student, self.teacher, self.bank, inputs)
            )
        self.student.train(training)
        self.bank.add_round(number, rows)
