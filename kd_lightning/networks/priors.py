"""Rules as teachers: networks whose output does not depend on the input."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd_lightning.core.errors import UsageError


class ConstantPrior(nn.Module):
    """Output the same logits for every input: a rule, or class prior, as a member of an ensemble of teachers.

    An attentive ensemble (`kd_lightning.losses.AttentiveEnsembleLoss`) learns its weight for each sample.

    Args:
        probabilities: One for each class, above 0; they are normalised to the sum 1.

    Shapes:
        Input (N, ...); output: logits (N, C), the logarithms of the normalised probabilities.

    Raises:
        UsageError: There are fewer than two, or one is not a finite number above 0.

    Example:
        >>> ConstantPrior([1, 1, 2])(torch.zeros(1, 5)).exp()
        tensor([[0.2500, 0.2500, 0.5000]])
    """

    def __init__(self, probabilities: Sequence[float]) -> None:
        super().__init__()
        if len(probabilities) < 2 or not all(math.isfinite(p) and p > 0 for p in probabilities):
            raise UsageError(
                f"probabilities={list(probabilities)} must be at least two finite numbers above 0, one for each class"
            )
        self.register_buffer("logits", torch.tensor(probabilities, dtype=torch.float32).log().log_softmax(dim=0))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits for each sample, (N, C)."""
        return self.get_buffer("logits").expand(len(inputs), -1)
