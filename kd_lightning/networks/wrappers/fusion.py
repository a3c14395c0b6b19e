"""Networks whose last feature maps are fused for one more classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.activations import tap
from kd_lightning.core.errors import UsageError
from kd_lightning.networks.wrappers.branches import check_layer


class FeatureFusion(nn.Module):
    """Run several networks and classify their fused feature maps; the fused classifier's logits are the output.

    F = ReLU(BN(pointwise(ReLU(BN(depthwise([F_1, ..., F_M])))))) with a 3x3 depthwise and a 1x1 pointwise convolution
    down to the widest member's channels; z_f = W pool(F) + b

    Jangho Kim, Minsung Hyun, Inseop Chung, Nojun Kwak: Feature Fusion for Online Mutual Knowledge Distillation. ICPR,
    2020 (arXiv:1904.09058). In their experiments with members of one architecture, these share their lower layers; here
    each member is a complete network, of any architecture, that can be used alone. Maps of different sizes are averaged
    down to the smallest height and width.

    Args:
        members: The networks; at least two.
        layers: For each member, the dotted name of the layer whose output is its last feature map.
        channels: For each member, the channels of that map.
        num_classes: Width of the logits.

    Shapes:
        Input: that of the members; output: logits (N, num_classes).

    Raises:
        UsageError: There are fewer than two members, the lists differ in length, a layer does not exist (the nearest
            names are given) or two members share parameters; at a call: a layer's output is not (N, channels, H, W).

    Example:
        >>> from kd_lightning.networks import StudentConvNet, TeacherConvNet
        >>> fusion = FeatureFusion([StudentConvNet(), TeacherConvNet()], ["conv.5", "conv.5"], [32, 128])
        >>> fusion(torch.zeros(2, 3, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, members: Sequence[nn.Module], layers: Sequence[str], channels: Sequence[int], num_classes: int = 10
    ) -> None:
        super().__init__()
        if not 2 <= len(members) == len(layers) == len(channels):
            raise UsageError(
                f"{len(members)} members, {len(layers)} layers and {len(channels)} channels: "
                "give at least two members, with one layer and its channels for each"
            )
        for member, layer in zip(members, layers, strict=True):
            check_layer(member, layer)
        parameters = [parameter for member in members for parameter in member.parameters()]
        if len(set(parameters)) < len(parameters):
            raise UsageError("two members share parameters, so they cannot differ: copy one of them")
        self.members = nn.ModuleList(members)
        self.layers = list(layers)
        self.channels = list(channels)
        total, width = sum(channels), max(channels)
        self.fusion = nn.Sequential(
            nn.Conv2d(total, total, kernel_size=3, padding=1, groups=total, bias=False),
            nn.BatchNorm2d(total),
            nn.ReLU(),
            nn.Conv2d(total, width, kernel_size=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, inputs: Any) -> Tensor:
        """Return the fused classifier's logits, (N, num_classes)."""
        return self.all_logits(inputs)[1]

    def all_logits(self, inputs: Any) -> tuple[list[Tensor], Tensor]:
        """Return the logits of each member, and those of the fused classifier."""
        tapped = [tap(member, inputs, [at, "logits"]) for member, at in zip(self.members, self.layers, strict=True)]
        maps = [activations[layer] for activations, layer in zip(tapped, self.layers, strict=True)]
        for i, (feature_map, channels) in enumerate(zip(maps, self.channels, strict=True)):
            if feature_map.dim() != 4 or feature_map.shape[1] != channels:
                raise UsageError(
                    f"layer {self.layers[i]!r} of member {i} gives {tuple(feature_map.shape)}, not (N, {channels}, H, "
                    "W): set channels to its width, or name the layer of its last feature map"
                )
        size = (min(feature_map.shape[2] for feature_map in maps), min(feature_map.shape[3] for feature_map in maps))
        maps = [m if m.shape[2:] == size else functional.adaptive_avg_pool2d(m, size) for m in maps]
        fused = self.fusion(torch.cat(maps, dim=1)).mean(dim=(2, 3))
        return [activations["logits"] for activations in tapped], self.classifier(fused)
