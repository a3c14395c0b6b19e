"""Two players that move in turn: those who learn, and a discriminator that learns to see through them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, Literal, TypeVar, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import Learner, LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.lightning_internals import waits_for_all_gradients
from kd_lightning.core.progress import should_log
from kd_lightning.core.terms import Term

Seen = TypeVar("Seen")


class AlternatingLearner(Learner, ABC):
    """A scheme of two players that move in turn, each with an optimizer of its own.

    Lightning's ``max_steps`` and ``global_step`` count the moves of both; the schedules of this package count batches.
    Optimization is manual: Lightning refuses clipping and accumulation there.

    Args:
        student: The network that learns and that is deployed.
        terms: The losses by name, each with its addresses and weight.
        optimizer: Builds the optimizer of everything but the opponents.
        adversary_optimizer: Builds that of the opponents.
        lr_scheduler: Builds a learning-rate scheduler for each of the two.
        lr_interval: Whether the schedulers move at each batch or at each epoch.
        metrics: Any torchmetrics collection to evaluate by; by default that of the kind of label.
    """

    def __init__(
        self,
        student: nn.Module,
        terms: dict[str, Term],
        optimizer: OptimizerCallable,
        adversary_optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        lr_interval: Literal["step", "epoch"],
        metrics: MetricCollection | None,
    ) -> None:
        super().__init__(student, terms, optimizer, lr_scheduler, lr_interval, metrics)
        self.automatic_optimization = False
        self.build_adversary_optimizer = adversary_optimizer

    @property
    def optimizer_steps_per_batch(self) -> int:
        """Two: one step of each player."""
        return 2

    @abstractmethod
    def adversary_modules(self) -> list[nn.Module]:
        """The networks that play against the others."""

    def setup(self, stage: str) -> None:
        """As for any learner; two players need a strategy that waits for nobody's gradients."""
        super().setup(stage)
        if stage == "fit" and waits_for_all_gradients(self.trainer.strategy):
            raise UsageError(
                f"strategy='ddp' waits for the gradients of all players, and {type(self).__name__} moves one at a "
                "time: set strategy='ddp_find_unused_parameters_true'"
            )

    def configure_optimizers(self) -> Any:
        """An optimizer, and a scheduler, for each player: the opponents' second."""
        theirs = [parameter for network in self.adversary_modules() for parameter in network.parameters()]
        known = set(theirs)
        ours = [parameter for parameter in self.parameters() if parameter.requires_grad and parameter not in known]
        optimizers = [self.build_optimizer(ours), self.build_adversary_optimizer(theirs)]
        build = self.build_lr_scheduler
        return optimizers, [] if build is None else [build(optimizer) for optimizer in optimizers]

    def on_train_epoch_end(self) -> None:
        """Moves the schedulers that count epochs."""
        if self.lr_interval == "epoch":
            self._move_schedulers()

    def _move_schedulers(self) -> None:
        schedulers: Any = self.lr_schedulers()
        for scheduler in schedulers or ():
            scheduler.step()


class TwoPlayerLearner(AlternatingLearner, ABC, Generic[Seen]):
    """A scheme whose discriminators minimise one loss, and everything else another, in turn and with an optimizer each.

    A batch is one step of both: the networks run once, the discriminators move, and then the networks do, against
    discriminators that have moved. Lightning's ``max_steps`` and ``global_step`` count both, two a batch; the schedules
    of this package count batches.

    The discriminators' loss is logged as ``train/discriminator``: 2 log 2 = 1.39 for each of them that cannot tell.

    Args:
        student: The network that learns and that is deployed.
        terms: The losses by name, each with its addresses and weight.
        optimizer: Builds the optimizer of everything but the discriminators.
        discriminator_optimizer: Builds that of the discriminators.
        lr_scheduler: Builds a learning-rate scheduler for each of the two.
        lr_interval: Whether the schedulers move at each step or at each epoch.
        metrics: Any torchmetrics collection to evaluate by; by default that of the kind of label.
    """

    def __init__(
        self,
        student: nn.Module,
        terms: dict[str, Term],
        optimizer: OptimizerCallable = torch.optim.Adam,
        discriminator_optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        super().__init__(student, terms, optimizer, discriminator_optimizer, lr_scheduler, lr_interval, metrics)

    # ---- what a scheme is made of

    @abstractmethod
    def discriminators(self) -> list[nn.Module]:
        """The networks that play against the others."""

    @abstractmethod
    def watch(self, batch: Any) -> Seen:
        """What the networks give for a batch: both moves look at it."""

    @abstractmethod
    def discriminate(self, seen: Seen) -> Tensor:
        """What the discriminators minimise; nothing of it reaches the networks."""

    @abstractmethod
    def losses(self, seen: Seen) -> dict[str, Tensor]:
        """What the networks minimise: the unweighted loss of each term, by the term's name."""

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """The unweighted losses of the networks' move."""
        return self.losses(self.watch(batch))

    def adversary_modules(self) -> list[nn.Module]:
        """The discriminators."""
        return self.discriminators()

    # ---- what Lightning calls

    def training_step(self, batch: Any, batch_idx: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The discriminators' move, and then the networks'."""
        learning, discriminating = cast("list[LightningOptimizer]", self.optimizers())
        seen = self.watch(batch)

        with self.toggled_optimizer(discriminating):
            told = self.discriminate(seen)
            discriminating.zero_grad()
            self.manual_backward(told)
            discriminating.step()

        with self.toggled_optimizer(learning):
            losses = self.losses(seen)
            total = self.weighted_sum(losses)
            learning.zero_grad()
            self.manual_backward(total)
            learning.step()

        if self.lr_interval == "step":
            self._move_schedulers()
        if should_log(self.trainer):
            self._log_training(losses, total.detach() + 0 * told.detach())  # a step is finite if both losses are
            self.log("train/discriminator", told.detach())
