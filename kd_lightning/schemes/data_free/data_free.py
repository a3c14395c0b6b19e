"""DataFreeDistiller: a generator makes the inputs on which a student learns from its teacher."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kd_lightning.core.activations import tap
from kd_lightning.core.batch import size_of
from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.progress import should_log
from kd_lightning.core.term import Term
from kd_lightning.core.terms import Terms
from kd_lightning.networks import Generator
from kd_lightning.networks.generators import check_generator
from kd_lightning.schemes.adversarial.two_players import AlternatingLearner
from kd_lightning.schemes.data_free.image_losses import evaluate_terms
from kd_lightning.schemes.frozen_teacher import FrozenTeacher


class DataFreeDistiller(FrozenTeacher, AlternatingLearner):
    """Train a generator by terms of the frozen teacher, and the student to imitate the teacher on its images, in turn.

    Only the size of a training batch is used, as `kd_lightning.data.NoiseDataModule` gives it. In a batch the generator
    is updated first, with gradients through the frozen teacher, and then the student, on newly generated inputs that
    are held fixed. The methods differ in the terms and in the number of updates:

    - DAFL (Hanting Chen et al.: Data-Free Learning of Student Networks. ICCV 2019, arXiv:1904.01186): the generator's
      terms ask for confident answers of the teacher, all classes in equal parts, and large activations; the student is
      in none of them.
    - DFAD (Gongfan Fang et al.: Data-Free Adversarial Distillation. 2019, arXiv:1912.11006): the generator maximises
      the difference between student and teacher, a term of negative weight; the student has five updates.
    - ZSKT (Paul Micaelli, Amos Storkey: Zero-shot Knowledge Transfer via Adversarial Belief Matching. NeurIPS 2019,
      arXiv:1905.09768): the same with the KL divergence and ten updates of the student, on the same noise.

    The generator's losses are logged as ``train/generator/<name>``, their weighted sum as ``train/generator``. The
    other arguments are those of `AlternatingLearner`.

    Args:
        student: The network that is trained, evaluated and exported.
        teacher: The network that teaches; it is frozen, and in no checkpoint.
        generator: Makes the inputs. Its classes, where it has any, are the label ``target``.
        terms: The losses of the student on generated inputs.
        generator_terms: The losses of the generator; a term of the teacher alone has ``student=None``.
        generator_optimizer: Builds the generator's optimizer.
        generator_steps: Updates of the generator in a batch; with 0 it keeps its initial weights, for an ablation.
        student_steps: Updates of the student in a batch.
        same_noise: All updates of a batch use the same noise.

    Raises:
        UsageError: There are no terms, a number of steps is out of its range, or teacher and student share parameters.

    Example:
        >>> from kd_lightning.losses import KDLoss, OneHotLoss
        >>> from kd_lightning.networks import StudentConvNet, TeacherConvNet
        >>> players = StudentConvNet(), TeacherConvNet(), Generator((3, 32, 32))
        >>> learner = DataFreeDistiller(*players, {"kd": Term(KDLoss())}, {"one_hot": Term(OneHotLoss(), student=None)})
        >>> sorted(learner.compute_losses({"index": torch.arange(4)}))
        ['kd']
    """

    teacher_sees_data = False

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        generator: Generator,
        terms: dict[str, Term],
        generator_terms: dict[str, Term],
        optimizer: OptimizerCallable = torch.optim.Adam,
        generator_optimizer: OptimizerCallable = torch.optim.Adam,
        generator_steps: int = 1,
        student_steps: int = 1,
        same_noise: bool = False,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        super().__init__(student, terms, optimizer, generator_optimizer, lr_scheduler, lr_interval, metrics)
        if generator_steps < 0 or student_steps < 1:
            raise UsageError(
                f"generator_steps={generator_steps} must be at least 0 and student_steps={student_steps} at least 1"
            )
        check_generator(generator)
        self.teacher = teacher
        self.generator = generator
        self.generator_terms = Terms(generator_terms)
        self.generator_steps = generator_steps
        self.student_steps = student_steps
        self.same_noise = same_noise

    @property
    def optimizer_steps_per_batch(self) -> int:
        """The generator's steps and the student's."""
        return self.generator_steps + self.student_steps

    def adversary_modules(self) -> list[nn.Module]:
        """Return the generator, and its terms, which may have parameters."""
        return [self.generator, self.generator_terms]

    @torch.no_grad()
    def synthetic_images(self, count: int) -> Tensor:
        """Generate `count` images in [0, 1] for a picture, with the generator in eval."""
        training = self.generator.training
        images = self.generator.eval()(*self.generator.draw(count, self.device))
        self.generator.train(training)
        return self.generator.format.to_unit(images)

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """Compute the student's unweighted losses on inputs that are generated for it."""
        return self._student_losses(*self.generator.draw(size_of(batch), self.device))

    def generator_losses(self, images: Tensor, labels: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute the generator's unweighted losses of its images."""
        return evaluate_terms(self.generator_terms, self.student, self.teacher, images, labels)[0]

    def training_step(self, batch: Any, batch_idx: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update the generator, and then the student."""
        student_optimizer, generator_optimizer = cast("list[LightningOptimizer]", self.optimizers())
        count = size_of(batch)
        shared = self.generator.draw(count, self.device)
        of_generator: dict[str, Tensor] = {}
        losses: dict[str, Tensor] = {}

        for _ in range(self.generator_steps):
            noise = shared if self.same_noise else self.generator.draw(count, self.device)
            with self.toggled_optimizer(generator_optimizer):
                of_generator = self.generator_losses(self.generator(*noise), _labels(noise))
                generator_optimizer.zero_grad()
                self.manual_backward(self.generator_terms.weighted_sum(of_generator))
                generator_optimizer.step()

        for _ in range(self.student_steps):
            noise = shared if self.same_noise else self.generator.draw(count, self.device)
            with self.toggled_optimizer(student_optimizer):
                losses = self._student_losses(*noise)
                student_optimizer.zero_grad()
                self.manual_backward(self.weighted_sum(losses))
                student_optimizer.step()

        if self.lr_interval == "step":
            self._step_schedulers()
        total = self.weighted_sum(losses).detach()
        generator_total = torch.zeros((), device=self.device)
        if of_generator:
            generator_total = self.generator_terms.weighted_sum(of_generator).detach()
        generators = {f"generator/{name}": loss.detach() for name, loss in of_generator.items()}
        generators["generator"] = generator_total
        self._means.add(self.terms, losses, total)
        self._means.add_values(generators)
        if should_log(self.trainer):
            self._log_training(losses, total)
            self.log_dict({f"train/{name}": value for name, value in generators.items()})

    def _student_losses(self, *noise: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            images = self.generator(*noise)
        student = tap(self.student, images, self.terms.layers("student"))
        teacher = tap(self.teacher, images, self.terms.layers("teacher"))
        return self.term_losses(student, teacher, _labels(noise))


def _labels(noise: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return the classes that were drawn, where there are any, as labels."""
    return {"target": noise[1]} if len(noise) > 1 else {}
