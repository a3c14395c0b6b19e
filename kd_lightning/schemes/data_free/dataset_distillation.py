"""A data set distilled: a few images, and a rate, from which a network learns what all the others would teach it."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torchmetrics import MetricCollection

from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import Learner, LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.terms import Term
from kd_lightning.core.torch_internals import Dropout


class DatasetDistillation(Learner):
    """Images of each class and a learning rate, such that a few steps of gradient descent on them make a network good.

    theta_k+1 = theta_k - eta grad_theta CE(theta_k; images, classes), and the terms of theta_K on real batches are
    minimised over the images and eta, by back-propagation through all K steps.

    Tongzhou Wang, Jun-Yan Zhu, Antonio Torralba, Alexei A. Efros: Dataset Distillation. 2018 (arXiv:1811.10959). What
    is learned are the images and eta alone; the student is what its first weights become by them, written anew before
    each validation, at the end of each epoch and into each checkpoint. With `random_start` every batch starts from
    other first weights, so that the images serve any; the student then starts from some that stay the same.

    There is no teacher: the terms have none. The other arguments are those of `Learner`.

    Args:
        student: The network, with the weights that all steps begin from; no layer of it may draw or keep anything.
        images_per_class: How many images there are of each class.
        classes: How many there are.
        steps: K, each on all of the images.
        rate: eta to begin with.
        learn_images: Without it the images stay noise, and the rate alone is learned: an ablation.
        random_start: Begin each batch from weights that are drawn anew.
        xavier: Draw all first weights as Glorot and Bengio (2010) do, and biases as zeros, as the authors do. Otherwise
            they are the student's own, and a random start draws as the layers do.
        size: Height and width of the images.
        channels: How often the one channel is shown.

    Raises:
        UsageError: A number is out of its range, a term has a teacher or looks at more than the logits, or the student
            has buffers (BatchNorm) or dropout.

    Example:
        >>> from kd_lightning.losses import TaskLoss
        >>> from kd_lightning.networks import StudentConvNet
        >>> learner = DatasetDistillation(StudentConvNet(), {"task": Term(TaskLoss(), teacher=None)}, steps=2)
        >>> learner.images.shape, learner.rate
        (torch.Size([10, 1, 28, 28]), tensor(0.0200))
    """

    classes: Tensor

    def __init__(
        self,
        student: nn.Module,
        terms: dict[str, Term],
        images_per_class: int = 1,
        classes: int = 10,
        steps: int = 10,
        rate: float = 0.02,
        learn_images: bool = True,
        random_start: bool = False,
        xavier: bool = True,
        size: int = 28,
        channels: int = 3,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        super().__init__(student, terms, optimizer, lr_scheduler, lr_interval, metrics)
        given = {"images_per_class": images_per_class, "classes": classes, "steps": steps, "size": size}
        for name, value in (given | {"channels": channels}).items():
            if value < 1:
                raise UsageError(f"{name}={value} must be at least 1")
        if not (math.isfinite(rate) and rate > 0):
            raise UsageError(f"rate={rate} must be a finite number above 0")
        if any(term.teacher is not None or term.student != "logits" for term in terms.values()):
            raise UsageError("terms: there is no teacher here, and the logits alone are seen: set teacher to null")
        draws = [name for name, module in student.named_modules() if isinstance(module, Dropout)]
        if draws or next(student.buffers(), None) is not None:
            raise UsageError(
                "student: steps are taken on its weights alone, and it has "
                f"{'dropout at ' + draws[0] if draws else 'buffers'}: use a network without"
            )
        self.student.requires_grad_(False)  # it is made, and does not learn
        if xavier:
            _draw_xavier(self.student)
        for name, value in student.named_parameters():
            self.register_buffer(_stored(name), value.detach().clone())
        self.images = nn.Parameter(torch.rand(classes * images_per_class, 1, size, size), learn_images)
        # positive by softplus, as the paper has it
        self.raw_rate = nn.Parameter(torch.tensor(math.log(math.expm1(rate))))
        self.register_buffer("classes", torch.arange(classes).repeat_interleave(images_per_class))
        self.steps = steps
        self.random_start = random_start
        self.xavier = xavier
        self.channels = channels

    @property
    def rate(self) -> Tensor:
        """Eta."""
        return functional.softplus(self.raw_rate.detach())

    @torch.no_grad()
    def synthetic_images(self, count: int) -> Tensor:
        """The first so many of the images, for a picture."""
        return self.images[:count].expand(-1, self.channels, -1, -1)

    def start(self) -> dict[str, Tensor]:
        """The weights that steps begin from."""
        if not self.random_start:
            return {name: self.get_buffer(_stored(name)) for name, _ in self.student.named_parameters()}
        drawn = copy.deepcopy(self.student)
        for module in drawn.modules():
            if not self.xavier and callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        if self.xavier:
            _draw_xavier(drawn)
        return dict(drawn.named_parameters())

    @torch.enable_grad()
    def learn(self, create_graph: bool = True) -> dict[str, Tensor]:
        """The weights that the images make of the first ones."""
        weights = {name: value.detach().requires_grad_() for name, value in self.start().items()}
        shown = self.images.expand(-1, self.channels, -1, -1)
        eta = functional.softplus(self.raw_rate)
        for _ in range(self.steps):
            loss = functional.cross_entropy(functional_call(self.student, weights, (shown,)).float(), self.classes)
            gradients = torch.autograd.grad(loss, [*weights.values()], create_graph=create_graph)
            weights = {
                name: value - eta * gradient for (name, value), gradient in zip(weights.items(), gradients, strict=True)
            }
        return weights

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """The terms of what the images make of the first weights, on a batch of real ones."""
        split = self.split_batch(batch)
        logits = functional_call(self.student, self.learn(), (split.student,))
        return self.term_losses({"logits": logits}, None, split.labels)

    @torch.no_grad()
    def make_student(self) -> None:
        """Writes what the images make of the first weights into the student."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(0)  # of a random start, which is nobody else's affair
            made = self.learn(create_graph=False)
        for name, value in self.student.named_parameters():
            value.copy_(made[name])

    def on_train_epoch_end(self) -> None:
        """The student is what the images make of it now."""
        self.make_student()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As for any learner, and with the student as it is by now."""
        super().on_save_checkpoint(checkpoint)
        self.make_student()
        for name, value in self.student.state_dict(prefix="student.").items():
            checkpoint["state_dict"][name] = value

    def on_validation_start(self) -> None:
        """Write the student, during a fit, and begin to count."""
        super().on_validation_start()
        if self.trainer.state.fn == "fit":
            self.make_student()


def _stored(name: str) -> str:
    return "start_" + name.replace(".", "_")


def _draw_xavier(network: nn.Module) -> None:
    for value in network.parameters():
        if value.dim() > 1:
            nn.init.xavier_normal_(value)
        else:
            nn.init.zeros_(value)
