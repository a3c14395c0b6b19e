"""Exits: classifiers on shallow layers of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from kd_lightning.core.activations import record_activations
from kd_lightning.core.errors import UsageError
from kd_lightning.networks.wrappers.early_exit import EarlyExit, check_layers


class ExitHead(nn.Module):
    """Map a shallow layer's features to the shape of the deepest features, and classify them.

    The bottleneck is a 1x1 convolution to a quarter of the channels, then a 3x3 and a 1x1 convolution, each with
    BatchNorm and ReLU. Layer paths: ``features``, (N, channels, pool, pool), and ``classifier``.

    Args:
        in_channels: Channels of the shallow layer.
        channels: Channels of the deepest features, the input of the network's own classifier.
        num_classes: Width of the logits.
        stride: Stride of the 3x3 convolution: the ratio of the sizes of the shallow and the deepest features.
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
        """Return logits (N, num_classes) of a layer's features (N, in_channels, H, W)."""
        return self.classifier(self.features(features).flatten(1))


class MultiExitNetwork(nn.Module):
    """Add classifiers to some shallow layers of a network; all of them run in each forward pass.

    Linfeng Zhang et al.: Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self
    Distillation. ICCV 2019 (arXiv:1905.08094).

    Layer paths: ``network``, the deepest classifier's logits, and the layers below it; ``exits.0``, ``exits.1``, ...,
    the other classifiers' logits, and their layers (``exits.0.features``).

    Args:
        network: Any network that returns logits.
        layers: Dotted names of the layers that have an exit, shallow to deep.
        heads: One for each layer, which maps the layer's output to logits; `ExitHead` is one for convolutional layers.
        output_exit: Index of the exit whose logits are the output; the deepest classifier's if not given. The whole
            network runs in either case: `early_exit` builds an exit without the deeper layers.

    Raises:
        UsageError: A layer does not exist (the nearest names are given), the numbers of layers and heads differ, or
            `output_exit` is not the index of an exit.

    Example:
        >>> import torch
        >>> from kd_lightning import tap
        >>> from kd_lightning.networks import StudentConvNet
        >>> heads = [ExitHead(32, 32, pool=2), ExitHead(32, 32, pool=2)]
        >>> network = MultiExitNetwork(StudentConvNet(), ["conv.1", "conv.3"], heads)
        >>> activations = tap(network, torch.zeros(2, 3, 28, 28), ["exits.1", "exits.1.features", "network.pool"])
        >>> {layer: tuple(activation.shape) for layer, activation in activations.items()}
        {'exits.1': (2, 10), 'exits.1.features': (2, 32, 2, 2), 'network.pool': (2, 32, 2, 2)}
    """

    def __init__(
        self, network: nn.Module, layers: Sequence[str], heads: Sequence[nn.Module], output_exit: int | None = None
    ) -> None:
        super().__init__()
        if not layers or len(layers) != len(heads):
            raise UsageError(
                f"{len(layers)} layers and {len(heads)} heads: give at least one layer, and a head for each"
            )
        if output_exit is not None and not 0 <= output_exit < len(layers):
            raise UsageError(f"output_exit={output_exit} must lie between 0 and {len(layers) - 1}, or be omitted")
        check_layers(network, layers)
        self.network = network
        self.layers = list(layers)
        self.exits = nn.ModuleList(heads)
        self.output_exit = output_exit

    @property
    def classifiers(self) -> list[str]:
        """The paths of all classifiers, shallow to deep."""
        return [*(f"exits.{i}" for i in range(len(self.exits))), "network"]

    @property
    def output_layer(self) -> str:
        """The path of the classifier whose logits are the output."""
        return "network" if self.output_exit is None else f"exits.{self.output_exit}"

    def early_exit(self, index: int) -> EarlyExit:
        """Build a network that ends at one exit, without the deeper layers; the weights are the same tensors."""
        return EarlyExit(self.network, self.layers[index], self.exits[index])

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the logits (N, C) of the output layer."""
        with record_activations(self.network, [*self.layers, "logits"]) as activations:
            self.network(*args, **kwargs)
        logits = [head(activations[layer]) for layer, head in zip(self.layers, self.exits, strict=True)]
        return activations["logits"] if self.output_exit is None else logits[self.output_exit]


def _convolution(channels: int, width: int, kernel_size: int, stride: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(channels, width, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return [layer, nn.BatchNorm2d(width), nn.ReLU()]
