"""How good a network's logits are, counted over batches and ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric

from kd_lightning.rows import to_rows

Stage = Literal["val", "test"]


class Evaluation(nn.Module):
    """Accuracy and negative log-likelihood of networks, exact on uneven ranks.

    Args:
        names: What the networks are called.

    Example:
        >>> evaluation = Evaluation(["student"])
        >>> evaluation.update("val", "student", torch.zeros(2, 10), torch.tensor([0, 3]))
        >>> round(evaluation.of("val", "student")["nll"].compute().item(), 4)
        2.3026
    """

    def __init__(self, names: Iterable[str] = ("student",)) -> None:
        super().__init__()
        self.names = list(names)
        self.metrics = nn.ModuleDict(
            {
                _key(stage, name, metric): MeanMetric(nan_strategy="disable")
                for stage in ("val", "test")
                for name in self.names
                for metric in ("acc", "nll")
            }
        )

    def update(self, stage: Stage, name: str, logits: Tensor, target: Tensor) -> None:
        """Counts a batch; logits of tokens or pixels position by position, those labelled -100 left out."""
        rows = to_rows(logits.double() if logits.dtype == torch.float64 else logits.float(), None, target)
        target = cast("Tensor", rows.target)
        metrics = self.of(stage, name)
        metrics["acc"].update((rows.student.argmax(dim=1) == target).float())
        metrics["nll"].update(functional.cross_entropy(rows.student, target, reduction="none"))

    def of(self, stage: Stage, name: str) -> dict[str, MeanMetric]:
        """The metrics ``acc`` (in [0, 1]) and ``nll`` (nats) of one network."""
        return {metric: cast("MeanMetric", self.metrics[_key(stage, name, metric)]) for metric in ("acc", "nll")}


def _key(stage: str, name: str, metric: str) -> str:
    return f"{stage}_{name}_{metric}".replace(".", "/")  # a module's name has no dots
