"""An autoencoder that compresses a teacher's feature maps to a factor."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kd_lightning.core.activations import record_activations
from kd_lightning.core.errors import UsageError
from kd_lightning.core.freezing import freeze
from kd_lightning.core.lookup import choose, network_names
from kd_lightning.losses.common.connectors import convolutions


class Paraphraser(nn.Module):
    """Autoencoder of feature maps, whose code is the teacher's factor.

    Jangho Kim, SeongUk Park, Nojun Kwak: Paraphrasing Complex Network: Network Compression via Factor Transfer. NeurIPS
    2018 (arXiv:1802.04977). The encoder has three 3x3 convolutions, the second of which changes to the factor's width;
    the decoder has three transposed convolutions back. Each has BatchNorm and LeakyReLU of slope 0.1. Other
    implementations omit the BatchNorm.

    Args:
        channels: Channels of the feature maps.
        rate: Ratio of the factor's width to `channels`, rounded to a whole channel: the paper's k.

    Raises:
        UsageError: `rate` is so small that the factor has no channels.

    Example:
        >>> import torch
        >>> paraphraser = Paraphraser(channels=8, rate=0.5)
        >>> maps = torch.zeros(2, 8, 5, 5)
        >>> paraphraser.encoder(maps).shape, paraphraser(maps).shape
        (torch.Size([2, 4, 5, 5]), torch.Size([2, 8, 5, 5]))
    """

    def __init__(self, channels: int, rate: float = 0.5) -> None:
        super().__init__()
        factor = round(channels * rate)
        if factor < 1:
            raise UsageError(f"rate={rate} of {channels} channels leaves none for the factor: increase it")
        self.encoder = convolutions(channels, channels, factor, factor)
        self.decoder = convolutions(factor, factor, channels, channels, kind=nn.ConvTranspose2d)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the reconstruction of maps (N, channels, H, W)."""
        return self.decoder(self.encoder(maps))


class Paraphrased(nn.Module):
    """Train a paraphraser on one layer of a frozen network; the output is the network's own.

    The network is frozen but part of the state dict, so that a checkpoint is complete. Only the paraphraser is trained.
    Layer paths: ``paraphraser.encoder`` (the factor), ``paraphraser.decoder`` (the reconstruction), and the layers of
    ``network``.

    Args:
        network: Any trained network.
        layer: Dotted name of the layer whose output is compressed.
        paraphraser: A module with an ``encoder`` and a ``decoder``, such as `Paraphraser`.

    Raises:
        UsageError: The layer does not exist (the nearest names are given).

    Example:
        >>> import torch
        >>> from kd_lightning import tap
        >>> from kd_lightning.networks import StudentConvNet
        >>> network = Paraphrased(StudentConvNet(), "conv.5", Paraphraser(channels=32))
        >>> activations = tap(network, torch.zeros(2, 3, 28, 28), ["paraphraser.encoder"])
        >>> {layer: tuple(activation.shape) for layer, activation in activations.items()}
        {'paraphraser.encoder': (2, 16, 5, 5)}
    """

    def __init__(self, network: nn.Module, layer: str, paraphraser: nn.Module) -> None:
        super().__init__()
        choose(layer, network_names(network), f"{type(network).__name__} has no layer {{name}} to paraphrase")
        self.network = freeze(network)
        self.layer = layer
        self.paraphraser = paraphraser

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the network's output."""
        with record_activations(self.network, [self.layer]) as activations:
            output = self.network(*args, **kwargs)
        self.paraphraser(activations[self.layer])
        return output
