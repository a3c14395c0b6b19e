"""Classifiers on shallow layers: a network that can answer early."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from kd_lightning.core.activations import record_activations
from kd_lightning.core.errors import UsageError
from kd_lightning.networks.wrappers.early_exit import EarlyExit, check_layers


class ExitHead(nn.Module):
    """A bottleneck that brings a shallow layer's features to the shape of the deepest ones, and a classifier.

    Layers, by the names that a tap uses: ``features``, (N, channels, pool, pool), and ``classifier``. The bottleneck
    is a 1x1 convolution to a quarter of the channels, a 3x3 one and a 1x1 one, each with BatchNorm and ReLU.

    Args:
        in_channels: Channels of the layer that it stands on.
        channels: Channels of the deepest features, those that the network's own classifier is given.
        num_classes: Width of the logits.
        stride: Of the 3x3 convolution: how many times smaller the deeper layers are.
        pool: Height and width of the features: 2 for `ConvNet`, 1 where the deepest are averaged over all positions.

    Shapes:
        Input (N, in_channels, H, W); output: logits (N, num_classes).

    Example:
        >>> import torch
        >>> ExitHead(in_channels=8, channels=32)(torch.zeros(2, 8, 13, 13)).shape
        torch.Size([2, 10])
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int = 10, stride: int = 1, pool: int = 1) -> None:
        super().__init__()
        narrow = max(channels // 4, 1)
        self.features = nn.Sequential(
            *_convolution(in_channels, narrow, kernel_size=1),
            *_convolution(narrow, narrow, kernel_size=3, stride=stride),
            *_convolution(narrow, channels, kernel_size=1),
            nn.AdaptiveAvgPool2d(pool),
        )
        self.classifier = nn.Linear(channels * pool**2, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, num_classes) of a layer's features (N, in_channels, H, W)."""
        return self.classifier(self.features(features).flatten(1))


class MultiExitNetwork(nn.Module):
    """A network with classifiers on some of its shallow layers, all of which run in each forward pass.

    Linfeng Zhang et al.: Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self
    Distillation. ICCV 2019 (arXiv:1905.08094).

    Layers, by the names that a tap uses: ``network``, the deepest classifier's logits, and what is in it;
    ``exits.0``, ``exits.1``, ..., the other classifiers' logits, and what is in them (``exits.0.features``).

    Args:
        network: Any network that gives logits.
        layers: Dotted names of the layers that exits stand on, shallow to deep.
        heads: Gives logits of what its layer gives, one for each layer; `ExitHead` is one for convolutional layers.
        answer: The exit whose logits are the output; the deepest classifier's if not given. The whole network runs all
            the same: `upto` gives an exit without what it does not need.

    Raises:
        UsageError: There is no such layer (the nearest names are given), layers and heads do not go together, or there
            is no exit to answer with.

    Example:
        >>> import torch
        >>> from kd_lightning import tap
        >>> from kd_lightning.networks import StudentConvNet
        >>> heads = [ExitHead(32, 32, pool=2), ExitHead(32, 32, pool=2)]
        >>> network = MultiExitNetwork(StudentConvNet(), ["conv.1", "conv.3"], heads)
        >>> seen = tap(network, torch.zeros(2, 3, 28, 28), ["exits.1", "exits.1.features", "network.pool"])
        >>> {layer: tuple(activation.shape) for layer, activation in seen.items()}
        {'exits.1': (2, 10), 'exits.1.features': (2, 32, 2, 2), 'network.pool': (2, 32, 2, 2)}
    """

    def __init__(
        self, network: nn.Module, layers: Sequence[str], heads: Sequence[nn.Module], answer: int | None = None
    ) -> None:
        super().__init__()
        if not layers or len(layers) != len(heads):
            raise UsageError(f"{len(layers)} layers and {len(heads)} heads: give each layer a head, and at least one")
        if answer is not None and not 0 <= answer < len(layers):
            raise UsageError(f"answer={answer} is none of the {len(layers)} exits: count them from 0, or leave it out")
        check_layers(network, layers)
        self.network = network
        self.layers = list(layers)
        self.exits = nn.ModuleList(heads)
        self.answer = answer

    @property
    def classifiers(self) -> list[str]:
        """The layers that give logits, shallow to deep."""
        return [*(f"exits.{i}" for i in range(len(self.exits))), "network"]

    @property
    def answering(self) -> str:
        """The layer whose logits are the output."""
        return "network" if self.answer is None else f"exits.{self.answer}"

    def upto(self, index: int) -> EarlyExit:
        """One exit alone, with nothing of the network that is behind it; the weights are the same tensors."""
        return EarlyExit(self.network, self.layers[index], self.exits[index])

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The logits (N, C) of the classifier that answers."""
        with record_activations(self.network, [*self.layers, "logits"]) as seen:
            self.network(*args, **kwargs)
        answers = [head(seen[layer]) for layer, head in zip(self.layers, self.exits, strict=True)]
        return seen["logits"] if self.answer is None else answers[self.answer]


def _convolution(channels: int, width: int, kernel_size: int, stride: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(channels, width, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return [layer, nn.BatchNorm2d(width), nn.ReLU()]
