"""DatasetDistillation: a few learned images from which a network learns in a few steps of gradient descent."""

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
from kd_lightning.core.term import Term
from kd_lightning.core.torch_internals import Dropout
from kd_lightning.networks.image_format import ImageFormat, ImageShape, PerChannel


class DatasetDistillation(Learner):
    """Learn images of each class, and a learning rate, such that a few gradient steps on them train a network well.

    theta_k+1 = theta_k - eta grad_theta CE(theta_k; images, classes), and the terms of theta_K on real batches are
    minimised over the images and eta, by back-propagation through all K steps.

    Tongzhou Wang, Jun-Yan Zhu, Antonio Torralba, Alexei A. Efros: Dataset Distillation. 2018 (arXiv:1811.10959). Only
    the images and eta are learned. The student's weights are theta_K; they are computed before each validation, at the
    end of each epoch and for each checkpoint. With `random_start` every batch begins with newly drawn weights, so that
    the images suit any initialisation, and the student begins with weights of one fixed seed.

    There is no teacher: the terms have ``teacher=None``. Images begin as uniform noise. The other arguments are those
    of `Learner`.

    Args:
        student: The network, with the weights that all steps begin with; it has no dropout and no buffers.
        terms: The losses of the trained weights on real batches, by name.
        image_shape: (C, H, W) of the images.
        images_per_class: Images of each class.
        classes: The number of classes.
        steps: K, each on all of the images.
        lr: The initial eta.
        learn_images: With False the images stay noise and only eta is learned, for an ablation.
        random_start: Begin each batch with newly drawn weights.
        xavier: Draw all initial weights as Glorot and Bengio (2010) do, with biases of zero, as the authors do. With
            False they are the student's own, and a random start uses each layer's ``reset_parameters``.
        value_range: The least and the greatest value of a pixel before normalization; the first images are in it.
        mean: Mean of the normalization: one number, or one for each channel.
        std: Standard deviation of the normalization: one number, or one for each channel.

    Raises:
        UsageError: A number is out of its range, a term has a teacher or addresses more than the logits, or the student
            has buffers (BatchNorm) or dropout.

    Example:
        >>> from kd_lightning.losses import TaskLoss
        >>> from kd_lightning.networks import StudentConvNet
        >>> terms = {"task": Term(TaskLoss(), teacher=None)}
        >>> learner = DatasetDistillation(StudentConvNet(), terms, image_shape=(3, 32, 32), steps=2)
        >>> learner.images.shape, learner.lr
        (torch.Size([10, 3, 32, 32]), tensor(0.0200))
    """

    classes: Tensor

    def __init__(
        self,
        student: nn.Module,
        terms: dict[str, Term],
        image_shape: ImageShape,
        images_per_class: int = 1,
        classes: int = 10,
        steps: int = 10,
        lr: float = 0.02,
        learn_images: bool = True,
        random_start: bool = False,
        xavier: bool = True,
        value_range: tuple[float, float] = (0.0, 1.0),
        mean: PerChannel = 0.0,
        std: PerChannel = 1.0,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        super().__init__(student, terms, optimizer, lr_scheduler, lr_interval, metrics)
        for name, value in {"images_per_class": images_per_class, "classes": classes, "steps": steps}.items():
            if value < 1:
                raise UsageError(f"{name}={value} must be at least 1")
        if not (math.isfinite(lr) and lr > 0):
            raise UsageError(f"lr={lr} must be a finite number above 0")
        if any(term.teacher is not None or term.student != "logits" for term in terms.values()):
            raise UsageError("terms: there is no teacher here, and only the logits are recorded: set teacher to null")
        draws = [name for name, module in student.named_modules() if isinstance(module, Dropout)]
        if draws or next(student.buffers(), None) is not None:
            raise UsageError(
                "student: gradient steps change its weights alone, and it has "
                f"{'dropout at ' + draws[0] if draws else 'buffers'}: use a network without"
            )
        self.student.requires_grad_(False)  # its weights are computed
        if xavier:
            _draw_xavier(self.student)
        for name, value in student.named_parameters():
            self.register_buffer(_stored(name), value.detach().clone())
        self.format = ImageFormat(image_shape, value_range, mean, std)
        first = self.format.from_unit(torch.rand(classes * images_per_class, *image_shape))
        self.images = nn.Parameter(first, learn_images)
        self.raw_lr = nn.Parameter(
            torch.tensor(math.log(math.expm1(lr)))
        )  # softplus makes it positive, as in the paper
        self.register_buffer("classes", torch.arange(classes).repeat_interleave(images_per_class))
        self.steps = steps
        self.random_start = random_start
        self.xavier = xavier

    @property
    def lr(self) -> Tensor:
        """The learned learning rate, eta."""
        return functional.softplus(self.raw_lr.detach())

    @torch.no_grad()
    def synthetic_images(self, count: int) -> Tensor:
        """Return the first `count` images, in [0, 1] for a picture."""
        return self.format.to_unit(self.images[:count])

    def initial_weights(self) -> dict[str, Tensor]:
        """Return the weights that the steps begin with, by name."""
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
    def trained_weights(self, create_graph: bool = True) -> dict[str, Tensor]:
        """Train a network on the images from its initial weights, and return its weights by name."""
        weights = {name: value.detach().requires_grad_() for name, value in self.initial_weights().items()}
        eta = functional.softplus(self.raw_lr)
        for _ in range(self.steps):
            logits = functional_call(self.student, weights, (self.images,))
            loss = functional.cross_entropy(logits.float(), self.classes)
            gradients = torch.autograd.grad(loss, [*weights.values()], create_graph=create_graph)
            weights = {
                name: value - eta * gradient for (name, value), gradient in zip(weights.items(), gradients, strict=True)
            }
        return weights

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """Compute the terms of the trained weights on a batch of real images."""
        split = self.split_batch(batch)
        logits = functional_call(self.student, self.trained_weights(), (split.student,))
        return self.term_losses({"logits": logits}, None, split.labels)

    @torch.no_grad()
    def update_student(self) -> None:
        """Write the trained weights into the student."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(0)  # of a random start; the generator's state is restored
            trained = self.trained_weights(create_graph=False)
        for name, value in self.student.named_parameters():
            value.copy_(trained[name])

    def on_train_epoch_end(self) -> None:
        """Update the student at the end of each epoch."""
        self.update_student()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the name of the inference network, and the student's updated weights."""
        super().on_save_checkpoint(checkpoint)
        self.update_student()
        for name, value in self.student.state_dict(prefix="student.").items():
            checkpoint["state_dict"][name] = value

    def on_validation_start(self) -> None:
        """Update the student, during a fit, and reset the metrics."""
        super().on_validation_start()
        if self.trainer.state.fn == "fit":
            self.update_student()


def _stored(name: str) -> str:
    return "start_" + name.replace(".", "_")


def _draw_xavier(network: nn.Module) -> None:
    for value in network.parameters():
        if value.dim() > 1:
            nn.init.xavier_normal_(value)
        else:
            nn.init.zeros_(value)
