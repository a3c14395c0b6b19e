"""The base class of schemes in which several networks learn together as peers."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kd_lightning.core.activations import Activations, logits, tap
from kd_lightning.core.arguments import check_is_network
from kd_lightning.core.batch import Batch
from kd_lightning.core.errors import UsageError
from kd_lightning.core.freezing import is_excluded_from_state_dict
from kd_lightning.core.learner import Learner, LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.lightning_internals import validate_at_train_start
from kd_lightning.core.progress import completed_batches
from kd_lightning.core.term import Term


class PeerLearner(Learner, ABC):
    """A student and its peers, which learn together; a subclass defines their losses in `compute_losses`.

    All networks are trained by one optimizer, evaluated (``val/acc/student``, ``val/acc/peers.0``, ...) and kept in the
    checkpoint. `deploy` chooses the inference network, whose metrics are logged as ``val/acc`` and so on.

    Args:
        student: The first of the networks; the inference network by default.
        peers: The other networks, of any architectures.
        terms: The losses by name; the scheme defines which networks each compares.
        deploy: The inference network: ``student``, or ``best``, the best network by `monitor` in the last validation,
            of those that the checkpoint holds.
        optimizer: Builds the optimizer from the parameters of all networks and terms.
        lr_scheduler: Builds a learning-rate scheduler from the optimizer.
        lr_interval: ``step`` or ``epoch``: when the scheduler steps.
        metrics: Any torchmetrics collection to evaluate by; by default that of the kind of label.

    Raises:
        UsageError: There is no peer, or two networks share parameters.
    """

    def __init__(
        self,
        student: nn.Module,
        peers: Sequence[nn.Module],
        terms: dict[str, Term],
        deploy: Literal["student", "best"] = "student",
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        super().__init__(student, terms, optimizer, lr_scheduler, lr_interval, metrics)
        if not peers:
            raise UsageError("peers is empty: give the student at least one network to learn with")
        for i, peer in enumerate(peers):
            check_is_network(peer, f"peers[{i}]")
        if deploy not in ("student", "best"):
            raise UsageError(f"deploy={deploy!r} is neither 'student' nor 'best'")
        self.peers = nn.ModuleList(peers)
        parameters = [parameter for network in self.networks().values() for parameter in network.parameters()]
        if len(set(parameters)) < len(parameters):
            raise UsageError("two of the networks share parameters and could not learn separately: copy one of them")
        self.deploy = deploy
        self.evaluated_networks = list(self.networks())
        self.register_buffer("best", torch.zeros((), dtype=torch.int64))
        self.register_buffer("validated_at", torch.zeros((), dtype=torch.int64))  # completed batches at that time

    def networks(self) -> dict[str, nn.Module]:
        """Return the student and its peers, by their names in this module."""
        return {"student": self.student} | {f"peers.{i}": peer for i, peer in enumerate(self.peers)}

    def network_activations(self, batch: Batch) -> list[Activations]:
        """Return the activations of each network, the student first, at every layer that a term addresses."""
        layers = dict.fromkeys([*self.terms.layers("student"), *self.terms.layers("teacher")])
        return [tap(network, batch.student, layers) for network in self.networks().values()]

    @property
    def inference_network_name(self) -> str:
        """Name of the inference network: the student, or the network that was best in the last validation."""
        return "student" if self.deploy == "student" else self.evaluated_networks[int(cast("Tensor", self.best))]

    def evaluated_logits(self, inputs: Any) -> dict[str, Tensor]:
        """Compute the logits of each network, by its name."""
        return {name: logits(network, inputs) for name, network in self.networks().items()}

    def on_train_start(self) -> None:
        """Validate first where the resumed run had stopped between a batch and the validation due after it.

        Lightning skips that validation, unless `ExactResume` was there, and `deploy="best"` would keep the result of
        the one before.
        """
        if self.trainer.fit_loop.epoch_loop.val_loop.restarted_mid_evaluation:
            return
        trainer, done, length = self.trainer, completed_batches(self.trainer), self.trainer.num_training_batches
        epochs, batches = trainer.check_val_every_n_epoch, trainer.val_check_batch
        due = batches is not None and (
            done % batches == 0
            if epochs is None
            else done % length % batches == 0 and math.ceil(done / length) % epochs == 0
        )
        if due and trainer.enable_validation and done not in (0, int(cast("Tensor", self.validated_at))):
            validate_at_train_start(trainer)

    def on_validation_epoch_end(self) -> None:
        """Find the best network by the monitored metric, the first of equals, and log the metrics."""
        if not self.trainer.sanity_checking:
            metric = self.monitor.partition("/")[2]
            values = torch.stack([self.evaluation.value("val", name, metric) for name in self.networks()]).float()
            values = values if self.mode == "max" else -values
            excluded = [is_excluded_from_state_dict(network) for network in self.networks().values()]
            values[torch.tensor(excluded, device=values.device)] = -torch.inf
            cast("Tensor", self.best).fill_(values.argmax())
            cast("Tensor", self.validated_at).fill_(completed_batches(self.trainer))
        super().on_validation_epoch_end()


def detached(activations: Activations) -> Activations:
    """Detach all activations, so that the loss has no gradient in the network that teaches."""
    return {name: value.detach() for name, value in activations.items()}
