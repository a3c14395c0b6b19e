"""A student from images that its teacher dreams of: each is optimised by itself, and kept."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kd_lightning.core.activations import tap
from kd_lightning.core.distributed import all_gather_with_grad
from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.lightning_internals import attached_trainer
from kd_lightning.core.stateless_random import stateless_randint
from kd_lightning.core.terms import Term, Terms
from kd_lightning.schemes.data_free.drawn import evaluate_terms
from kd_lightning.schemes.data_free.inversion_targets import RandomClasses, Targets
from kd_lightning.schemes.frozen_teacher import FrozenTeacher


class InversionDistiller(FrozenTeacher):
    """Images are optimised until a frozen teacher sees what it is to see in them, and the student learns on those.

    Before every `every`-th batch, `round_size` images are drawn at random, go through `image_steps` steps against
    `image_terms`, and join a bank, until it is full; each batch of the student is drawn from what is there. The bank is
    in every checkpoint. Of a training batch nothing but its ``index`` is looked at, which chooses the images. What
    tells the methods apart are the terms and the targets:

    - DeepInversion (Hongxu Yin et al.: Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion. CVPR 2020,
      arXiv:1912.08795): images of random classes, smooth, and of the statistics that the teacher's BatchNorm layers
      remember; the adaptive form adds a term of negative weight between teacher and student, and goes on making images.
    - ZSKD (Gaurav Kumar Nayak et al.: Zero-Shot Knowledge Distillation in Deep Networks. ICML 2019, arXiv:1905.08114):
      data impressions, images that the teacher answers as
      `kd_lightning.schemes.data_free.inversion_targets.DataImpressions` say.
    - Metadata (Raphael Gontijo Lopes et al.: Data-Free Knowledge Distillation for Deep Neural Networks. 2017,
      arXiv:1710.07535): images that excite the teacher's layers as `RecordedActivations` there say.

    Images have one channel, shown `channels` times, and are kept within [0, 1]. In the image terms the student is in
    eval. The other arguments are those of `Learner`.

    Args:
        student: The network that learns and that is deployed.
        teacher: The network that teaches; it is frozen and left out of every checkpoint.
        terms: What the student minimises.
        image_terms: What an image minimises; a term of the teacher alone has ``student=None``.
        targets: What the images are to be of; ten classes if not given.
        bank_size: How many images there will be.
        round_size: How many are made at a time, on each process.
        every: Batches from one round to the next.
        image_steps: Steps of an image.
        image_optimizer: Builds the optimizer of a round's images; Adam at a rate of .1 if not given.
        jitter: Pixels that images are moved by in each step, at most, at random.
        size: Height and width of the images.
        channels: How often the one channel is shown.

    Raises:
        UsageError: There are no terms, a number is out of its range, or teacher and student share parameters.

    Example:
        >>> from kd_lightning.losses import KDLoss, TaskLoss
        >>> from kd_lightning.networks import StudentConvNet, TeacherConvNet
        >>> terms, image_terms = {"kd": Term(KDLoss())}, {"class": Term(TaskLoss(), student=None)}
        >>> small = {"bank_size": 8, "round_size": 8, "image_steps": 2}
        >>> learner = InversionDistiller(StudentConvNet(), TeacherConvNet(), terms, image_terms, **small)
        >>> sorted(learner.compute_losses({"index": torch.arange(4)}))
        ['kd']
    """

    teacher_sees_data = False
    steps_are_alike = False  # the batch's number decides when images are made and which ones are drawn

    bank: Tensor
    bank_targets: Tensor

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        terms: dict[str, Term],
        image_terms: dict[str, Term],
        targets: Targets | None = None,
        bank_size: int = 2560,
        round_size: int = 256,
        every: int = 1,
        image_steps: int = 200,
        image_optimizer: OptimizerCallable | None = None,
        jitter: int = 2,
        size: int = 28,
        channels: int = 3,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        super().__init__(student, terms, optimizer, lr_scheduler, lr_interval, metrics)
        given = {"bank_size": bank_size, "round_size": round_size, "every": every, "image_steps": image_steps}
        for name, value in (given | {"size": size, "channels": channels}).items():
            if value < 1:
                raise UsageError(f"{name}={value} must be at least 1")
        if not 0 <= jitter < size:
            raise UsageError(f"jitter={jitter} must be at least 0 and less than the images' size of {size}")
        self.teacher = teacher
        self.image_terms = Terms(image_terms)
        if next(self.image_terms.parameters(), None) is not None:
            raise UsageError("image_terms: a loss with parameters would not learn them there: use one without")
        self.targets = RandomClasses() if targets is None else targets
        self.round_size = round_size
        self.every = every
        self.image_steps = image_steps
        self.build_image_optimizer = image_optimizer
        self.jitter = jitter
        self.channels = channels
        with torch.random.fork_rng(devices=[]):
            one = self.targets.kept(self.targets(1, self.teacher))
        self.register_buffer("bank", torch.zeros(bank_size, 1, size, size))
        self.register_buffer("bank_targets", one.new_zeros(bank_size, *one.shape[1:]))

    # ---- the images

    def synthetic_images(self, count: int) -> Tensor:
        """The last images that joined the bank; for a picture."""
        filled = self._filled()
        return self._shown(self.bank[max(0, filled - count) : filled])

    def begin(self, count: int) -> Tensor:
        """What images (count, 1, H, W) are before their first step."""
        drawn = torch.randn(count, *self.bank.shape[1:], device=self.bank.device)
        return drawn.mul_(0.5).add_(0.5).clamp_(0, 1)

    @torch.enable_grad()
    def synthesise(self, count: int) -> tuple[Tensor, Tensor]:
        """So many images (count, 1, H, W) in [0, 1], and what they are of."""
        targets = self.targets(count, self.teacher)
        images = self.begin(count).requires_grad_()
        build = self.build_image_optimizer
        optimizer = torch.optim.Adam([images], lr=0.1) if build is None else build([cast("nn.Parameter", images)])
        training = self.student.training
        self.student.eval()
        terms = self.image_terms
        for _ in range(self.image_steps):
            moved = images
            if self.jitter:
                offsets = torch.randint(-self.jitter, self.jitter + 1, (2,)).tolist()
                moved = images.roll(offsets, dims=(2, 3))
            losses, _ = evaluate_terms(terms, self.student, self.teacher, self._shown(moved), {"target": targets})
            total = terms.weighted_sum(losses)
            (images.grad,) = torch.autograd.grad(total, [images])
            optimizer.step()
            with torch.no_grad():
                images.clamp_(0, 1)
        self.student.train(training)
        return images.detach(), self.targets.kept(targets)

    # ---- the student

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """The student's unweighted losses of images from the bank; a round of new ones comes first where it is due."""
        done = self._batches_done()
        if done % self.every == 0:
            self._add_round(done // self.every)
        rows = self._rows(batch)
        images = self._shown(self.bank[rows])
        student = tap(self.student, images, self.terms.layers("student"))
        teacher = tap(self.teacher, images, self.terms.layers("teacher"))
        return self.term_losses(student, teacher, {"target": self.bank_targets[rows]})

    def _add_round(self, number: int) -> None:
        size, start = len(self.bank), number * self._per_round()
        if start >= size:
            return
        self._join(start, *self.synthesise(min(self.round_size, size)))

    def _join(self, start: int, images: Tensor, targets: Tensor) -> None:
        images, targets = all_gather_with_grad(images), all_gather_with_grad(targets)
        end = min(start + len(images), len(self.bank))
        self.bank[start:end] = images[: end - start]
        self.bank_targets[start:end] = targets[: end - start]

    def _rows(self, batch: Any) -> Tensor:
        """Of the bank, chosen by the samples' numbers, so that ranks agree on who sees what."""
        split = self.split_batch(batch)
        index = split.labels.get("index")
        if index is None:
            raise UsageError("a batch has no index to choose images by: use NoiseDataModule, or give numbers")
        # another image each time that a number comes
        return stateless_randint(index + 1_000_003 * (self._batches_done() + 1), self._filled(after=True), salt=9)

    def _filled(self, after: bool = False) -> int:
        """How many images there are, after this batch's round or before it."""
        done = self._batches_done()
        rounds = done // self.every + 1 if after else -(-done // self.every)
        return min(rounds * self._per_round(), len(self.bank))

    def _per_round(self) -> int:
        """Of all processes."""
        trainer = attached_trainer(self)
        return self.round_size * (1 if trainer is None else trainer.world_size)

    def _shown(self, images: Tensor) -> Tensor:
        return images.expand(-1, self.channels, -1, -1)
