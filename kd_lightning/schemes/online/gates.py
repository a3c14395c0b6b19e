"""The gates of a knowledge transfer graph: which part of an edge's loss its target learns from."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from kd_lightning.core.activations import Activations
from kd_lightning.core.batch import target_of
from kd_lightning.core.errors import UsageError
from kd_lightning.core.term import Term


class EdgeGate(nn.Module, ABC):
    """The base class of gates: computes the loss of an edge, or a part of it."""

    depends_on_step: bool = False
    """The gate depends on the optimizer step, which `KnowledgeTransferGraph` sets by `set_step` before each batch."""
    selects_samples: bool = False
    """The gate needs logits, and computes the loss of some samples of the batch alone."""

    @abstractmethod
    def forward(self, term: Term, target: Activations, source: Activations | None, labels: dict[str, Tensor]) -> Tensor:
        """Compute the gated loss, a scalar.

        Args:
            term: The loss of the edge.
            target: The activations of the network that learns.
            source: The activations of the network that it learns from; None for the labels.
            labels: The labels of the batch.
        """

    def set_step(self, step: int) -> None:
        """Set the number of the optimizer step; without effect on gates that do not depend on it."""


class ThroughGate(EdgeGate):
    """Passes the whole loss."""

    def forward(self, term: Term, target: Activations, source: Activations | None, labels: dict[str, Tensor]) -> Tensor:
        """Compute the whole loss, a scalar."""
        return term(target, source, labels)


class CutOffGate(EdgeGate):
    """Passes nothing, like a missing edge: for a search over graphs."""

    def forward(self, term: Term, target: Activations, source: Activations | None, labels: dict[str, Tensor]) -> Tensor:
        """Return zero, without computing the loss."""
        return _zero(term, target)


class LinearGate(EdgeGate):
    """Scales the loss by k / k_end at optimizer step k, and passes all of it from step k_end on.

    Args:
        duration: k_end, in optimizer steps.

    Raises:
        UsageError: `duration` is below 1.
    """

    depends_on_step = True

    def __init__(self, duration: int) -> None:
        super().__init__()
        if duration < 1:
            raise UsageError(f"duration={duration} must be at least 1 optimizer step")
        self.duration = duration
        self.step = 0  # k, which the trainer counts: not part of the state dict

    def set_step(self, step: int) -> None:
        """Set k, the number of the optimizer step."""
        self.step = step

    def forward(self, term: Term, target: Activations, source: Activations | None, labels: dict[str, Tensor]) -> Tensor:
        """Compute the loss times k / k_end."""
        share = min(self.step / self.duration, 1.0)
        return share * term(target, source, labels) if share else _zero(term, target)


class CorrectGate(EdgeGate):
    """Passes the loss of the samples that the source classifies correctly; the others count as zero in the mean.

    From the labels all samples pass.

    Raises:
        UsageError: At a batch: its labels are no class indices.
    """

    selects_samples = True

    def forward(self, term: Term, target: Activations, source: Activations | None, labels: dict[str, Tensor]) -> Tensor:
        """Compute the loss of those samples, times their share of the batch."""
        if source is None:
            return term(target, source, labels)
        logits, classes = source["logits"], target_of(labels)
        if classes is None or classes.is_floating_point() or classes.shape != logits.shape[:1] or logits.dim() != 2:
            found = "none" if classes is None else f"{classes.dtype} {tuple(classes.shape)}"
            raise UsageError(
                f"CorrectGate compares logits (N, C) with class indices (N,), and there are logits "
                f"{tuple(logits.shape)} and target {found}: use another gate"
            )
        correct = logits.argmax(dim=1) == classes
        if not correct.any():
            return _zero(term, target)
        share = correct.float().mean()
        return share * term(
            *({name: value[correct] for name, value in each.items()} for each in (target, source, labels))
        )


def _zero(term: Term, target: Activations) -> Tensor:
    """Return zero in place of a loss, with a gradient of zero."""
    return term.idle(target, torch.zeros((), device=next(iter(target.values())).device))
