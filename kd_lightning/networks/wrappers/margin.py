"""A teacher with margin ReLU outputs beside its BatchNorms, for `OFDLoss`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.core.errors import UsageError

BatchNorm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def batch_norm_margins(weight: Tensor, bias: Tensor) -> Tensor:
    """Compute the mean of the negative part of a Gaussian for each channel: m = E[x | x < 0], x ~ N(bias, weight^2).

    m = b - s phi(b / s) / Phi(-b / s) with s = |weight|, and -3 s where at most one value in 1,000 is negative.

    Args:
        weight: A BatchNorm's weights (C,).
        bias: The BatchNorm's biases (C,).

    Returns:
        The margins (C,), at most 0.

    Example:
        >>> batch_norm_margins(torch.tensor([1.0, -2.0, 1.0]), torch.tensor([0.0, 0.0, 4.0]))
        tensor([-0.7979, -1.5958, -3.0000])
    """
    deviation, mean = weight.abs(), bias
    ratio = mean / deviation.clamp(min=torch.finfo(deviation.dtype).tiny ** 0.5)
    negative = torch.special.ndtr(-ratio)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    found = mean - deviation * density / negative.clamp(min=1e-3)
    return torch.where(negative > 1e-3, found, -3 * deviation)


class MarginTeacher(nn.Module):
    """A network with additional outputs max(F, m) of its BatchNorms F, where m is the mean of F's negative values.

    Byeongho Heo, Jeesoo Kim, Sangdoo Yun, Hyojin Park, Nojun Kwak, Jin Young Choi: A Comprehensive Overhaul of Feature
    Distillation. ICCV 2019 (arXiv:1904.01866). A student that imitates these outputs (`kd_lightning.losses.OFDLoss`)
    need not learn how negative a value is. m is `batch_norm_margins` of the BatchNorm's parameters at each call.

    Layer paths: ``margins.0``, ``margins.1``, ..., in the order of `norms`, and ``network`` with its layers.

    Args:
        network: The teacher, with a ReLU after each of `norms`. It is modified: its `norms` get a forward hook.
        norms: Dotted names of the BatchNorms.
        batch_statistics: Every BatchNorm normalises by batch statistics; its running statistics are removed. The
            authors keep their teacher in training mode. The outputs for an image then depend on the other images of its
            batch on the same process, so they cannot be cached by a `TeacherCache`.

    Shapes:
        Input and output: those of the network; ``margins.i`` has the shape of its BatchNorm's output.

    Raises:
        UsageError: `norms` is empty, or names a layer that is not a BatchNorm with weights.

    Example:
        >>> from kd_lightning import tap
        >>> from kd_lightning.networks import TeacherConvNet
        >>> teacher = MarginTeacher(TeacherConvNet(batch_norm=True), norms=["conv.0.1", "conv.2.1"])
        >>> tap(teacher, torch.zeros(2, 3, 28, 28), ["margins.1"])["margins.1"].shape
        torch.Size([2, 128, 6, 6])
    """

    def __init__(self, network: nn.Module, norms: Sequence[str], batch_statistics: bool = False) -> None:
        super().__init__()
        layers = dict(network.named_modules())
        found = [name for name, layer in layers.items() if isinstance(layer, BatchNorm) and layer.affine]
        for name in norms or ["(nothing)"]:
            if name not in found:
                raise UsageError(
                    f"norms: {name} is not a BatchNorm with weights in {type(network).__name__}: "
                    + (f"choose among {', '.join(found)}" if found else "use a network that has one")
                )
        self.network = network
        self.margins = nn.ModuleList(_Margin() for _ in norms)
        for name, margin in zip(norms, self.margins, strict=True):
            layers[name].register_forward_hook(partial(_apply_margin, margin))
        if batch_statistics:
            for layer in layers.values():
                if isinstance(layer, BatchNorm):
                    layer.track_running_stats = False
                    layer.running_mean = layer.running_var = layer.num_batches_tracked = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the network's output."""
        return self.network(*args, **kwargs)


class _Margin(nn.Module):
    def forward(self, features: Tensor, margins: Tensor) -> Tensor:
        return torch.maximum(features, margins.to(features.dtype).view(1, -1, *[1] * (features.dim() - 2)))


def _apply_margin(margin: nn.Module, norm: nn.Module, _args: Any, features: Tensor) -> None:
    weight, bias = norm.get_parameter("weight"), norm.get_parameter("bias")
    margin(features, batch_norm_margins(weight, bias))
