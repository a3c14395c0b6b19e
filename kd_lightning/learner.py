"""Learner: what every LightningModule here is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric

from kd_lightning.networks import freeze, is_frozen
from kd_lightning.steps import log_is_due
from kd_lightning.taps import Activations, logits_of, run, tap
from kd_lightning.terms import Term, names

OptimizerCallable = Callable[[Iterable[nn.Parameter]], Optimizer]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler]


class Batch(NamedTuple):
    """What `Learner.split_batch` makes of whatever the loader gave."""

    student: Any
    """The student's input: a tensor, or a mapping of keyword arguments."""
    teacher: Any
    """The teacher's input: the same object unless the teacher sees another view."""
    labels: dict[str, Tensor]
    """``"target"``, ``"index"`` and task-specific names; empty when unlabelled."""


class Learner(LightningModule, ABC):
    """A student and the terms that it learns by; a scheme says in `compute_losses` who teaches it.

    Every term is logged by name and unweighted as ``train/<name>``, their weighted sum as ``train/loss`` and each
    temperature as ``temperature/<name>``, at the steps that the loggers keep. Evaluation logs the student's accuracy
    and negative log-likelihood (nats) as ``val/acc``, ``val/nll``, ``test/acc`` and ``test/nll``, exact on uneven
    ranks.

    Args:
        student: The network that learns and that is deployed. It returns logits, or an object that has ``.logits``.
        terms: The losses by name, each with its addresses and weight.
        optimizer: Builds the optimizer from the parameters that learn.
        lr_scheduler: Builds a learning-rate scheduler from the optimizer.
        lr_interval: Whether the scheduler moves at each optimizer step or at each epoch.

    Raises:
        ValueError: There are no terms, or a term's name is not usable as one.
    """

    def __init__(
        self,
        student: nn.Module,
        terms: dict[str, Term],
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
    ) -> None:
        super().__init__()
        self._remember_hyperparameters()
        self.student = student
        self.terms = nn.ModuleDict(_checked(terms))
        self.build_optimizer = optimizer
        self.build_lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.metrics = nn.ModuleDict(
            {
                f"{stage}_{name}": MeanMetric(nan_strategy="disable")
                for stage in ("val", "test")
                for name in ("acc", "nll")
            }
        )

    # ---- what a scheme is made of

    @abstractmethod
    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """The unweighted loss of each term, by the term's name."""

    def split_batch(self, batch: Any) -> Batch:
        """Tells inputs from labels: the one place that knows what loaders give.

        A tensor is an unlabelled input; ``(x,)``, ``(x, target)`` and ``(x, target, index)`` are what they look like.
        In a mapping, the names that the terms address as targets, and ``target``, ``label``, ``labels`` and ``index``,
        are labels; the rest is the input, passed by name, or alone when it is a single tensor.
        """
        if isinstance(batch, Mapping):
            items = cast("Mapping[str, Tensor]", batch)
            known = {"target", "label", "labels", "index"}.union(
                *(names(term.target) for term in self._terms().values())
            )
            labels = {name: value for name, value in items.items() if name in known}
            inputs = {name: value for name, value in items.items() if name not in known}
            x = next(iter(inputs.values())) if len(inputs) == 1 else inputs
            return Batch(x, x, labels)
        if isinstance(batch, Tensor):
            return Batch(batch, batch, {})
        x, *rest = cast("list[Any]", batch)
        if len(rest) > 2:
            raise ValueError(f"a batch of {len(rest) + 1} parts is not (x, target, index): override split_batch")
        return Batch(x, x, dict(zip(("target", "index"), rest, strict=False)))

    def watch_student(self, batch: Batch) -> Activations:
        """What the student gives for its input, at every layer that a term addresses."""
        return tap(self.student, batch.student, self.layers("student"))

    def compare(
        self, student: Activations, teacher: Activations | None, labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Every term's unweighted loss of the same activations."""
        return {name: term(student, teacher, labels) for name, term in self.terms.items()}

    def layers(self, side: Literal["student", "teacher"]) -> list[str]:
        """The layers that the terms address on one side."""
        return list(dict.fromkeys(layer for term in self._terms().values() for layer in names(getattr(term, side))))

    def weighted_sum(self, losses: dict[str, Tensor]) -> Tensor:
        """The sum of the losses under the terms' weights."""
        terms = self._terms()
        return torch.stack([terms[name].weight * loss for name, loss in losses.items()]).sum()

    # ---- what Lightning calls

    def setup(self, stage: str) -> None:
        """Fixes frozen networks again, after every callback's setup, and finds an example input for the summary."""
        for module in self.modules():
            if is_frozen(module):
                freeze(module)
        if self.example_input_array is None:
            self.example_input_array = getattr(getattr(self.trainer, "datamodule", None), "example_input_array", None)

    def configure_optimizers(self) -> Any:
        """One optimizer over everything that learns, and its scheduler."""
        optimizer = self.build_optimizer([parameter for parameter in self.parameters() if parameter.requires_grad])
        if self.build_lr_scheduler is None:
            return optimizer
        scheduler = {"scheduler": self.build_lr_scheduler(optimizer), "interval": self.lr_interval}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The weighted sum of the scheme's losses."""
        losses = self.compute_losses(batch)
        total = self.weighted_sum(losses)
        if log_is_due(self.trainer):
            self._log_training(losses, total.detach())
        return total

    def forward(self, inputs: Any) -> Any:
        """The student's output."""
        return run(self.student, inputs)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Logs ``val/acc`` and ``val/nll``."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Logs ``test/acc`` and ``test/nll``."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """The student's logits."""
        return logits_of(self(self.split_batch(batch).student))

    # ---- inside

    def _terms(self) -> dict[str, Term]:
        return cast("dict[str, Term]", dict(self.terms.items()))

    def _log_training(self, losses: dict[str, Tensor], total: Tensor) -> None:
        if not torch.isfinite(total):
            found = ", ".join(f"{name}={loss.item():g}" for name, loss in losses.items())
            raise ValueError(
                f"the training loss is not finite at step {self.trainer.global_step} ({found}): "
                "look for non-finite inputs, a learning rate that is too high, or a temperature far below 1"
            )
        temperatures = {
            f"temperature/{name}": cast("float", term.loss.temperature)
            for name, term in self._terms().items()
            if hasattr(term.loss, "temperature")
        }
        self.log_dict({f"train/{name}": loss.detach() for name, loss in losses.items()} | temperatures)
        self.log("train/loss", total, prog_bar=True)

    def _evaluate(self, batch: Any, stage: Literal["val", "test"]) -> None:
        inputs, _, labels = self.split_batch(batch)
        target = next((labels[name] for name in ("target", "label", "labels") if name in labels), None)
        if target is None:
            raise ValueError(
                f"{stage} batches have no target ({', '.join(labels) or 'no labels'}): evaluation needs one"
            )
        logits = cast("Tensor", logits_of(self(inputs)))
        logits = logits.double() if logits.dtype == torch.float64 else logits.float()
        accuracy = cast("MeanMetric", self.metrics[f"{stage}_acc"])
        nll = cast("MeanMetric", self.metrics[f"{stage}_nll"])
        accuracy.update((logits.argmax(dim=1) == target).float())
        nll.update(nn.functional.cross_entropy(logits, target, reduction="none"))
        self.log_dict({f"{stage}/acc": accuracy, f"{stage}/nll": nll}, prog_bar=True)

    def _remember_hyperparameters(self) -> None:
        """Plain values only, else a checkpoint would need pickled code to load.

        From the command line Lightning hands over the parsed configuration, plain and complete, and marks it with
        ``_instantiator``. In Python it hands over the arguments themselves: networks, losses and functions, which are
        left out *before* Lightning deep-copies them.
        """
        everything = ["student", "teacher", "terms", "optimizer", "lr_scheduler"]
        self.save_hyperparameters(ignore=everything, logger=False)
        if "_instantiator" in self.hparams:
            self.save_hyperparameters(logger=False)


def _checked(terms: dict[str, Term]) -> dict[str, Term]:
    if not terms:
        raise ValueError("terms is empty: give at least one, e.g. terms={'task': Term(TaskLoss(), teacher=None)}")
    taken = nn.ModuleDict()
    for name in terms:
        if not name or "." in name or hasattr(taken, name):
            raise ValueError(f"a term cannot be called {name!r}: avoid dots and the names of dict and module methods")
    return terms
