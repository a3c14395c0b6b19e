"""Learner: what every LightningModule here is."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from inspect import signature
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kd_lightning.batch import Batch, Views, split_batch, split_views, target_of
from kd_lightning.core.errors import UsageError
from kd_lightning.core.lightning_internals import INSTANTIATOR, attached_trainer
from kd_lightning.core.progress import completed_batches, should_log
from kd_lightning.evaluation import Evaluation, Stage
from kd_lightning.networks import freeze, is_frozen
from kd_lightning.taps import Activations, differentiable, logits_of, run, tap
from kd_lightning.terms import Term, check_terms, names

OptimizerCallable = Callable[[Iterable[nn.Parameter]], Optimizer]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler]


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
        UsageError: There are no terms, or a term's name is not usable as one.
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
        self.terms = nn.ModuleDict(check_terms(terms))
        self.build_optimizer = optimizer
        self.build_lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.evaluation = Evaluation()
        self.differentiates = any(getattr(term.loss, "differentiates_input", False) for term in terms.values())

    # ---- what a scheme is made of

    steps_are_alike: bool = True
    """False where a step depends on the batch's number or on Python state; see `kd_lightning.core.traits`."""

    seen: Views | None = None
    """What the networks see of a batch in views; None where a batch is what all of them see."""

    @property
    def deployed(self) -> str:
        """Dotted name of the network that is evaluated, exported and used: the student, in most schemes."""
        return "student"

    def candidates(self, inputs: Any) -> dict[str, Tensor]:
        """Logits of everything that could be deployed, by the names that `evaluation` was built with."""
        return {self.deployed: cast("Tensor", logits_of(self(inputs)))}

    @abstractmethod
    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """The unweighted loss of each term, by the term's name."""

    def split_batch(self, batch: Any) -> Batch:
        """Tells inputs from labels; what a term addresses as its target is a label. See `kd_lightning.batch`."""
        label_names = (name for term in self._terms().values() for name in names(term.target))
        return split_batch(batch, label_names) if self.seen is None else split_views(batch, self.seen, label_names)

    def watch_student(self, batch: Batch) -> Activations:
        """What the student gives for its input, at every layer that a term addresses."""
        inputs = differentiable(batch.student) if self.differentiates else batch.student
        return tap(self.student, inputs, self.layers("student"))

    def compare(
        self, student: Activations, teacher: Activations | None, labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Every term's unweighted loss of the same activations."""
        return {name: term(student, teacher, labels) for name, term in self._terms().items()}

    def layers(self, side: Literal["student", "teacher"], terms: dict[str, Term] | None = None) -> list[str]:
        """The layers that the terms, its own if not given, address on one side."""
        found: dict[str, None] = {}
        for term in (self._terms() if terms is None else terms).values():
            address = term.student if side == "student" else term.teacher
            if isinstance(address, str):
                found[address] = None
            elif address is not None:
                found.update(dict.fromkeys(address))
        return list(found)

    def weighted_sum(self, losses: dict[str, Tensor], terms: dict[str, Term] | None = None) -> Tensor:
        """The sum of the losses under the weights of the terms, its own if not given."""
        terms = self._terms() if terms is None else terms
        total: Tensor | None = None
        for name, loss in losses.items():
            weighted = terms[name].weight * loss
            total = weighted if total is None else total + weighted
        assert total is not None
        return total

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
        for name, term in self._terms().items():
            if hasattr(term.loss, "discriminate"):
                raise UsageError(
                    f"term {name!r} has a discriminator, which {type(self).__name__} would train to help the student: "
                    "use AdversarialDistiller"
                )
        optimizer = self.build_optimizer([parameter for parameter in self.parameters() if parameter.requires_grad])
        if self.build_lr_scheduler is None:
            return optimizer
        scheduler = {"scheduler": self.build_lr_scheduler(optimizer), "interval": self.lr_interval}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The weighted sum of the scheme's losses."""
        losses = self.compute_losses(batch)
        total = self.weighted_sum(losses)
        if should_log(self.trainer):
            self._log_training(losses, total.detach())
        return total

    def forward(self, inputs: Any) -> Any:
        """The output of the network that is deployed."""
        return run(self.get_submodule(self.deployed), inputs)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Counts a batch for ``val/acc`` and ``val/nll``."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Counts a batch for ``test/acc`` and ``test/nll``."""
        self._evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Logs what validation found."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Logs what the test found."""
        self._log_evaluation("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Says which of the networks in it is deployed."""
        checkpoint["deployed"] = self.deployed

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """The student's logits."""
        return logits_of(self(self.split_batch(batch).student))

    # ---- inside

    def _batches_done(self) -> int:
        """As `kd_lightning.core.progress.completed_batches`; 0 outside a run."""
        trainer = attached_trainer(self)
        return 0 if trainer is None else completed_batches(trainer)

    def _terms(self) -> dict[str, Term]:
        terms: Any = self._modules["terms"]  # with as few calls as can be, for this is asked several times a step
        return terms._modules

    def _log_training(self, losses: dict[str, Tensor], total: Tensor) -> None:
        if not torch.isfinite(total):
            found = ", ".join(f"{name}={loss.item():g}" for name, loss in losses.items())
            raise UsageError(
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

    def _evaluate(self, batch: Any, stage: Stage) -> None:
        inputs, _, labels = self.split_batch(batch)
        target = target_of(labels)
        if target is None:
            raise UsageError(
                f"{stage} batches have no target ({', '.join(labels) or 'no labels'}): evaluation needs one"
            )
        for name, logits in self.candidates(inputs).items():
            self.evaluation.update(stage, name, logits, target)

    def _log_evaluation(self, stage: Stage) -> None:
        deployed = self.evaluation.of(stage, self.deployed)
        if len(self.evaluation.names) == 1:
            self.log_dict({f"{stage}/{metric}": value for metric, value in deployed.items()}, prog_bar=True)
            return
        for name in self.evaluation.names:
            self.log_dict({f"{stage}/{m}/{name}": value for m, value in self.evaluation.of(stage, name).items()})
        # the values, for Lightning keeps one name for a metric object
        values = {f"{stage}/{metric}": value.compute() for metric, value in deployed.items()}
        self.log_dict(values, prog_bar=True, sync_dist=True)

    def _remember_hyperparameters(self) -> None:
        """Plain values only, else a checkpoint would need pickled code to load.

        From the command line Lightning hands over the parsed configuration, plain and complete, and marks it with
        `INSTANTIATOR`. In Python it hands over the arguments themselves: networks, losses and functions, which are
        left out *before* Lightning deep-copies them.
        """
        schemes = [kind for kind in type(self).__mro__ if issubclass(kind, Learner)]  # each has arguments of its own
        arguments = [argument for scheme in schemes for argument in signature(scheme).parameters.values()]
        self.save_hyperparameters(ignore=[a.name for a in arguments if not _is_plain(a.annotation)], logger=False)
        if INSTANTIATOR in self.hparams:
            self.save_hyperparameters(logger=False)


def _is_plain(annotation: str) -> bool:
    """Whether what is annotated so is a number, a text or nothing."""
    return re.fullmatch(r"(int|float|str|bool|None|Literal\[.*?\]| \| )+", annotation) is not None
