"""Learner: the base class of every scheme, a LightningModule with a student and terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MetricCollection

from kd_lightning.core.activations import Activations, differentiable, tap
from kd_lightning.core.arguments import check_builders, check_is_network
from kd_lightning.core.batch import Batch, InputKeys, accepted_inputs, check_inputs, split_batch, split_by_keys
from kd_lightning.core.checkpoint_monitors import attach_monitors
from kd_lightning.core.evaluated import EvaluatedModule
from kd_lightning.core.evaluation import Evaluation
from kd_lightning.core.finite_check import attach_finite_check
from kd_lightning.core.freezing import freeze, is_frozen
from kd_lightning.core.hyperparameters import save_plain_hyperparameters
from kd_lightning.core.loader_sizes import attach_loader_sizes
from kd_lightning.core.loss import loss_trait
from kd_lightning.core.modes import check_in_training, networks_of
from kd_lightning.core.optimizers import build_optimizer
from kd_lightning.core.plateau import scheduler_config
from kd_lightning.core.progress import should_log
from kd_lightning.core.protocols import data_module_of
from kd_lightning.core.refused_weights import explain_refusal
from kd_lightning.core.term import Term
from kd_lightning.core.terms import Terms
from kd_lightning.core.training_means import TrainingMeans

OptimizerCallable = Callable[[Iterable[nn.Parameter]], Optimizer]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler]


class Learner(EvaluatedModule, ABC):
    """A student and the terms that train it; a scheme defines the losses in `compute_losses`.

    Every term is logged by name and unweighted as ``train/<name>``, their weighted sum as ``train/loss`` and each
    temperature as ``temperature/<name>``, at the steps that the loggers keep; monitors find the means over the epoch
    (`kd_lightning.core.training_means`) under the same names. Evaluation logs the metrics of the
    inference network as ``val/<metric>`` and ``test/<metric>``, exact on uneven ranks: by default accuracy (``acc``)
    and negative log-likelihood in nats (``nll``), for the kind of label that the task loss declares.

    Args:
        student: The network to train. It returns logits, or an object that has ``.logits``.
        terms: The losses by name, each with its addresses and weight.
        optimizer: Builds the optimizer from the trainable parameters.
        lr_scheduler: Builds a learning-rate scheduler from the optimizer; torch's ``ReduceLROnPlateau`` follows
            ``train/loss``, and Lightning's its ``monitor``.
        lr_interval: The scheduler is stepped at each optimizer step or at each epoch.
        metrics: Any torchmetrics collection to evaluate by, such as `kd_lightning.core.metrics.Metrics`.

    Raises:
        UsageError: The student is no network, there are no terms, a term's name cannot be one, or another argument
            cannot be meant; at the start of a fit: nothing learns.
    """

    input_keys: InputKeys | None = None
    """The inputs that the networks take from a batch of several; None where a batch has one for all."""
    steps_are_alike: bool = True
    """False where a step depends on the batch's number or on Python state; see `kd_lightning.core.traits`."""

    def __init__(
        self,
        student: nn.Module,
        terms: dict[str, Term],
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        super().__init__()
        check_is_network(student, "student")
        check_builders(optimizer, lr_scheduler, lr_interval)
        save_plain_hyperparameters(self, Learner)
        self.student = student
        self.terms = Terms(terms)
        self.build_optimizer = optimizer
        self.build_lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.evaluation = Evaluation(metrics or self.configure_metrics(), terms)
        self.evaluated_networks: Sequence[str] = ["student"]
        self.differentiates_input = any(loss_trait(term.loss, "differentiates_input") for term in terms.values())
        self._inputs_too: list[str] | None = None
        self._means = TrainingMeans()  # outside of a fit

    # ---- to override

    @abstractmethod
    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """Compute the unweighted loss of each term, by the term's name."""

    @property
    def optimizer_steps_per_batch(self) -> int:
        """Number of optimizer steps that one batch takes; Lightning's ``global_step`` counts each of them."""
        return 1

    # ---- building blocks of compute_losses

    def split_batch(self, batch: Any) -> Batch:
        """Split a batch into inputs and labels; see `kd_lightning.core.batch`."""
        if isinstance(batch, tuple | list | Tensor) and not hasattr(batch, "_fields"):
            return split_batch(batch) if self.input_keys is None else split_by_keys(batch, self.input_keys)
        labels = self.terms.labels()
        if self.input_keys is not None:
            return split_by_keys(batch, self.input_keys, labels)
        first = self._inputs_too is None
        if self._inputs_too is None:
            self._inputs_too = accepted_inputs(self.student, labels)
        split = split_batch(batch, labels, self._inputs_too)
        if first:
            check_inputs(self.student, split.student)
        return split

    def student_activations(self, batch: Batch) -> Activations:
        """Run the student once and return the layers that the terms address."""
        inputs = differentiable(batch.student) if self.differentiates_input else batch.student
        return tap(self.student, inputs, self.terms.layers("student"))

    def term_losses(
        self, student: Activations, teacher: Activations | None, labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Compute the unweighted loss of every term from the same activations."""
        return self.terms.losses(student, teacher, labels)

    def weighted_sum(self, losses: dict[str, Tensor]) -> Tensor:
        """Sum losses under the weights of their terms."""
        return self.terms.weighted_sum(losses)

    # ---- hooks of Lightning

    def setup(self, stage: str) -> None:
        """Freeze frozen networks again, after every callback's setup, and let every step be checked to be finite."""
        if stage == "fit":
            attach_finite_check(self.trainer, self)
            self._means = attach_monitors(self.trainer, self)
            attach_loader_sizes(self.trainer)
        for module in self.modules():
            if is_frozen(module):
                freeze(module)
        if self.example_input_array is None:
            self.example_input_array = getattr(data_module_of(self.trainer), "example_input_array", None)

    def configure_optimizers(self) -> Any:
        """Build one optimizer of all trainable parameters, and its scheduler."""
        self.terms.check_not_adversarial(type(self).__name__)
        learns = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = build_optimizer(self.build_optimizer, learns, type(self).__name__)
        if self.build_lr_scheduler is None:
            return optimizer
        scheduler = self.build_lr_scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": scheduler_config(scheduler, self.lr_interval)}

    def on_fit_start(self) -> None:
        """Let the first step check the terms, and check that the networks that learn are in training mode."""
        self.terms.start_fit(self.trainer)
        for name, network in networks_of(self):
            check_in_training(network, name)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the weighted sum of the scheme's losses."""
        terms, trainer = self.terms, self.trainer
        logged = should_log(trainer)
        is_last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        # an assignment would be three calls, and this is every step
        vars(terms)["skip_unweighted"] = not (logged or is_last)
        losses = self.compute_losses(batch)
        total = terms.weighted_sum(losses)
        self._means.add(terms, losses, total)
        if logged:
            self._log_training(losses, total.detach())
        return total

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load weights, as of a checkpoint; those of another scheme or of other networks are refused in one line."""
        try:
            return super().load_state_dict(state_dict, *args, **kwargs)
        except RuntimeError as error:
            raise explain_refusal(error, type(self).__name__) from error

    # ---- private

    def _log_training(self, losses: dict[str, Tensor], total: Tensor) -> None:
        self.log_dict(self.terms.log_values(losses))
        self.log("train/loss", total, prog_bar=True)
