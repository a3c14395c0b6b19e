"""A student from its teacher alone: a generator draws what the teacher is asked about."""

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
from kd_lightning.core.terms import Term, Terms
from kd_lightning.networks import Generator
from kd_lightning.schemes.adversarial.two_players import AlternatingLearner
from kd_lightning.schemes.data_free.drawn import evaluate_terms
from kd_lightning.schemes.frozen_teacher import FrozenTeacher


class DataFreeDistiller(FrozenTeacher, AlternatingLearner):
    """A generator draws inputs that its terms make worth asking about, and the student learns from the teacher on them.

    Of a training batch nothing but its size is looked at, as `kd_lightning.data.NoiseDataModule` gives it. In
    a batch the generator moves first, its gradient coming through the frozen teacher, and then the student, on inputs
    that are drawn anew and held fixed. What tells the methods apart are the terms and how often each moves:

    - DAFL (Hanting Chen et al.: Data-Free Learning of Student Networks. ICCV 2019, arXiv:1904.01186): the generator's
      inputs are surely of one class, evenly of all, and excite the teacher; the student is not asked.
    - DFAD (Gongfan Fang et al.: Data-Free Adversarial Distillation. 2019, arXiv:1912.11006): the generator looks for
      inputs on which the two differ, a term of negative weight; the student moves five times as often.
    - ZSKT (Paul Micaelli, Amos Storkey: Zero-shot Knowledge Transfer via Adversarial Belief Matching. NeurIPS 2019,
      arXiv:1905.09768): the same by KL, the student moves ten times, for the same noise.

    The generator's losses are logged as ``train/generator/<name>``, their weighted sum as ``train/generator``. The
    other arguments are those of `AlternatingLearner`.

    Args:
        student: The network that learns and that is deployed.
        teacher: The network that teaches; it is frozen and left out of every checkpoint.
        generator: Draws the inputs. Its classes, where it has any, are the label ``target``.
        terms: What the student minimises.
        generator_terms: What the generator minimises; a term of the teacher alone has ``student=None``.
        generator_optimizer: Builds the generator's optimizer.
        generator_steps: The generator's moves in a batch; with 0 it draws as it was built, which is an ablation.
        student_steps: The student's moves in a batch.
        same_noise: All moves of a batch draw from the same noise.

    Raises:
        UsageError: There are no terms, a number of steps is out of its range, or teacher and student share parameters.

    Example:
        >>> from kd_lightning.losses import KDLoss, OneHotLoss
        >>> from kd_lightning.networks import StudentConvNet, TeacherConvNet
        >>> players = StudentConvNet(), TeacherConvNet(), Generator()
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
        """The generator, and whatever its terms learn with."""
        return [self.generator, self.generator_terms]

    @torch.no_grad()
    def synthetic_images(self, count: int) -> Tensor:
        """So many inputs like those that the student learns from now, for a picture: the generator stays as it is."""
        training = self.generator.training
        images = self.generator.eval()(*self.generator.draw(count, self.device))
        self.generator.train(training)
        return images

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """The student's unweighted losses of inputs that are drawn for them."""
        return self._taught(*self.generator.draw(size_of(batch), self.device))

    def judge(self, images: Tensor, labels: dict[str, Tensor]) -> dict[str, Tensor]:
        """The generator's unweighted losses of what it drew."""
        return evaluate_terms(self.generator_terms, self.student, self.teacher, images, labels)[0]

    def training_step(self, batch: Any, batch_idx: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The generator's moves, and then the student's."""
        learning, generating = cast("list[LightningOptimizer]", self.optimizers())
        count = size_of(batch)
        kept = self.generator.draw(count, self.device)
        judged: dict[str, Tensor] = {}
        losses: dict[str, Tensor] = {}

        for _ in range(self.generator_steps):
            noise = kept if self.same_noise else self.generator.draw(count, self.device)
            with self.toggled_optimizer(generating):
                judged = self.judge(self.generator(*noise), _labels(noise))
                generating.zero_grad()
                self.manual_backward(self.generator_terms.weighted_sum(judged))
                generating.step()

        for _ in range(self.student_steps):
            noise = kept if self.same_noise else self.generator.draw(count, self.device)
            with self.toggled_optimizer(learning):
                losses = self._taught(*noise)
                learning.zero_grad()
                self.manual_backward(self.weighted_sum(losses))
                learning.step()

        if self.lr_interval == "step":
            self._move_schedulers()
        if should_log(self.trainer):
            drawn = (
                self.generator_terms.weighted_sum(judged).detach() if judged else torch.zeros((), device=self.device)
            )
            total = self.weighted_sum(losses).detach()
            self._log_training(losses, total + 0 * drawn)  # a step is finite if both losses are
            self.log_dict({f"train/generator/{name}": loss.detach() for name, loss in judged.items()})
            self.log("train/generator", drawn)

    def _taught(self, *noise: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            images = self.generator(*noise)
        student = tap(self.student, images, self.terms.layers("student"))
        teacher = tap(self.teacher, images, self.terms.layers("teacher"))
        return self.term_losses(student, teacher, _labels(noise))


def _labels(noise: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The classes that were drawn, where there are any."""
    return {"target": noise[1]} if len(noise) > 1 else {}
