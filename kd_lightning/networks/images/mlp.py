"""Multi-layer perceptron for images of any shape."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from kd_lightning.core.errors import UsageError


class MLP(nn.Module):
    """Multi-layer perceptron with ReLU and dropout; inputs of any shape are flattened.

    Layer paths: ``hidden.0`` (linear), ``hidden.1`` (ReLU), ``hidden.2`` (dropout), ``hidden.3`` (the next linear
    layer) and so on, then ``classifier``.

    Args:
        in_features: Values in one flattened input.
        hidden: Width of each hidden layer, first to last; at least one.
        num_classes: Width of the logits.
        dropout: Probability of dropping a hidden value while training.

    Raises:
        UsageError: No hidden layer is given.

    Example:
        >>> import torch
        >>> MLP(in_features=784, hidden=[32])(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, in_features: int, hidden: Sequence[int] = (1200, 1200), num_classes: int = 10, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if not hidden:
            raise UsageError("hidden is empty: give the width of at least one hidden layer, e.g. hidden=[1200, 1200]")
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise([in_features, *hidden]):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU(), nn.Dropout(dropout)]
        self.hidden = nn.Sequential(*layers)
        self.classifier = nn.Linear(hidden[-1], num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (N, num_classes) of inputs (N, ...)."""
        return self.classifier(self.hidden(inputs.flatten(1)))
