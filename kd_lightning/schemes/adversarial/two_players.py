"""Base classes of schemes with two players, each with an optimizer, that are updated in turn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, Literal, TypeVar, cast

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MetricCollection

from kd_lightning.core.attached import callbacks_of
from kd_lightning.core.distributed import broadcast_statistics
from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import Learner, LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.lightning_internals import waits_for_all_gradients
from kd_lightning.core.optimizers import build_optimizer
from kd_lightning.core.plateau import plateau_monitor, step_scheduler
from kd_lightning.core.progress import should_log
from kd_lightning.core.term import Term
from kd_lightning.schemes.adversarial.player_clipping import PlayerClipping

Outputs = TypeVar("Outputs")


class AlternatingLearner(Learner, ABC):
    """Base class of schemes with two players that are updated in turn, each by its own optimizer.

    Lightning's ``max_steps`` and ``global_step`` count the updates of both; the schedules of this package count
    batches. The trainer's gradient clipping holds for each optimizer by itself. Accumulation is refused: the players
    would be updated against each other's weights of other batches than with a batch in one piece.

    Args:
        student: The network that is trained, evaluated and exported.
        terms: The losses by name, each with its addresses and weight.
        optimizer: Builds the optimizer of all parameters but the adversary's.
        adversary_optimizer: Builds the adversary's optimizer.
        lr_scheduler: Builds a learning-rate scheduler for each of the two.
        lr_interval: The schedulers are stepped at each batch or at each epoch.
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
        """Return the modules of the adversary."""

    def configure_callbacks(self) -> list[Callback]:
        """Take the trainer's gradient clipping over, which Lightning refuses for manual optimization.

        Raises:
            UsageError: Gradients are to be accumulated.
        """
        trainer = self.trainer
        if trainer.state.fn != "fit":
            return []
        callbacks = callbacks_of(trainer)
        schedule = next((each for each in callbacks if isinstance(each, GradientAccumulationScheduler)), None)
        number = trainer.accumulate_grad_batches
        if number != 1 or (schedule is not None and schedule.going_to_accumulate_grad_batches()):
            setting = f"accumulate_grad_batches={number}" if number != 1 else "GradientAccumulationScheduler"
            raise UsageError(
                f"{setting}: {type(self).__name__} updates its players in turn in each batch, which accumulated "
                "gradients would not equal: use larger batches"
            )
        return [PlayerClipping(trainer)] if trainer.gradient_clip_val else []

    def setup(self, stage: str) -> None:
        """Check that the strategy does not wait for the gradients of all parameters."""
        super().setup(stage)
        if stage == "fit" and waits_for_all_gradients(self.trainer.strategy):
            raise UsageError(
                f"strategy='ddp' waits for the gradients of all players, and {type(self).__name__} updates one at a "
                "time: set strategy='ddp_find_unused_parameters_true'"
            )

    def configure_optimizers(self) -> Any:
        """Build an optimizer and a scheduler for each player, the adversary's second."""
        theirs = [parameter for network in self.adversary_modules() for parameter in network.parameters()]
        known = set(theirs)
        ours = [parameter for parameter in self.parameters() if parameter.requires_grad and parameter not in known]
        name = type(self).__name__
        optimizers = [
            build_optimizer(self.build_optimizer, ours, name),
            build_optimizer(self.build_adversary_optimizer, theirs, f"the adversary of {name}"),
        ]
        build = self.build_lr_scheduler
        schedulers: list[LRScheduler] = [] if build is None else [build(optimizer) for optimizer in optimizers]
        for scheduler in schedulers:
            plateau_monitor(scheduler, self.lr_interval)
        return optimizers, schedulers

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Begin with the same statistics on all ranks, which drift apart in manual optimization."""
        broadcast_statistics(self)

    def on_validation_start(self) -> None:
        """Validate the network that is saved, with the statistics of rank 0."""
        super().on_validation_start()
        broadcast_statistics(self)

    def on_train_epoch_end(self) -> None:
        """Step the schedulers that count epochs."""
        if self.lr_interval == "epoch":
            self._step_schedulers()

    def _step_schedulers(self) -> None:
        schedulers: Any = self.lr_schedulers()
        for scheduler in schedulers or ():
            step_scheduler(scheduler, self.lr_interval, self.trainer)


class TwoPlayerLearner(AlternatingLearner, ABC, Generic[Outputs]):
    """Base class of schemes with discriminators, which minimise one loss, and networks, which minimise another.

    In a batch the networks run once, the discriminators are updated, and then the networks are, against the updated
    discriminators. Lightning's ``max_steps`` and ``global_step`` count both, two in a batch; the schedules of this
    package count batches.

    The discriminators' loss is logged as ``train/discriminator``: 2 log 2 = 1.39 for each of them that guesses.

    Args:
        student: The network that is trained, evaluated and exported.
        terms: The losses by name, each with its addresses and weight.
        optimizer: Builds the optimizer of all parameters but the discriminators'.
        discriminator_optimizer: Builds the discriminators' optimizer.
        lr_scheduler: Builds a learning-rate scheduler for each of the two.
        lr_interval: The schedulers are stepped at each batch or at each epoch.
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

    # ---- to override

    @abstractmethod
    def discriminators(self) -> list[nn.Module]:
        """Return the discriminator networks, which the scheme trains against the others."""

    @abstractmethod
    def network_outputs(self, batch: Any) -> Outputs:
        """Run the networks on a batch and return their outputs, from which the losses of both players are computed."""

    @abstractmethod
    def discriminator_loss(self, outputs: Outputs) -> Tensor:
        """Compute the loss of the discriminators, without gradients to the networks."""

    @abstractmethod
    def losses(self, outputs: Outputs) -> dict[str, Tensor]:
        """Compute the losses of the networks: the unweighted loss of each term, by the term's name."""

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """Compute the unweighted losses of the networks."""
        return self.losses(self.network_outputs(batch))

    def adversary_modules(self) -> list[nn.Module]:
        """Return the discriminators, which are the adversary of such a scheme."""
        return self.discriminators()

    # ---- hooks of Lightning

    def training_step(self, batch: Any, batch_idx: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update the discriminators, and then the networks."""
        optimizer, discriminator_optimizer = cast("list[LightningOptimizer]", self.optimizers())
        outputs = self.network_outputs(batch)

        with self.toggled_optimizer(discriminator_optimizer):
            of_discriminators = self.discriminator_loss(outputs)
            discriminator_optimizer.zero_grad()
            self.manual_backward(of_discriminators)
            discriminator_optimizer.step()

        with self.toggled_optimizer(optimizer):
            losses = self.losses(outputs)
            total = self.weighted_sum(losses)
            optimizer.zero_grad()
            self.manual_backward(total)
            optimizer.step()

        if self.lr_interval == "step":
            self._step_schedulers()
        self._means.add(self.terms, losses, total)
        self._means.add_values({"discriminator": of_discriminators})
        if should_log(self.trainer):
            self._log_training(losses, total.detach())
            self.log("train/discriminator", of_discriminators.detach())
