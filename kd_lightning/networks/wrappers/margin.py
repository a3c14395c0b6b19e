"""A teacher that shows its features with a margin in place of ReLU."""

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
    """Mean of the negative part of a Gaussian, by channel: m = E[x | x < 0] with x ~ N(bias, weight^2).

    m = b - s phi(b / s) / Phi(-b / s) with s = |weight|, and -3 s where at most one in a thousand is negative.

    Args:
        weight: A BatchNorm's weights (C,).
        bias: Its biases (C,).

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
    """A network whose BatchNorms also show max(F, m), with m the mean of what is negative in them.

    Byeongho Heo, Jeesoo Kim, Sangdoo Yun, Hyojin Park, Nojun Kwak, Jin Young Choi: A Comprehensive Overhaul of Feature
    Distillation. ICCV 2019 (arXiv:1904.01866). A student that imitates them (`kd_lightning.losses.OFDLoss`) need not
    learn how negative a value is. m is `batch_norm_margins` of the BatchNorm's parameters at each call.

    Layers, by the names that a tap uses: ``margins.0``, ``margins.1``, ..., in the order of `norms`, and ``network``
    with what is in it.

    Args:
        network: The teacher, with a ReLU behind each of `norms`. It is changed: its `norms` get a hook.
        norms: Dotted names of the BatchNorms.
        batch_statistics: Every BatchNorm normalises by its batch in place of its running statistics, which are dropped:
            the authors keep their teacher in training mode. What it shows of an image then depends on the other images
            of its batch, and on that of one process: no `TeacherCache` can hold it.

    Shapes:
        Input and output: those of the network; ``margins.i`` has the shape of what its BatchNorm gives.

    Raises:
        UsageError: There are no norms, or one of them is no BatchNorm with weights.

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
        there = [name for name, layer in layers.items() if isinstance(layer, BatchNorm) and layer.affine]
        for name in norms or ["(nothing)"]:
            if name not in there:
                raise UsageError(
                    f"{name} is no BatchNorm with weights in {type(network).__name__}: norms can be "
                    f"{', '.join(there) or 'none, for it has no such layer'}"
                )
        self.network = network
        self.margins = nn.ModuleList(_Margin() for _ in norms)
        for name, shown in zip(norms, self.margins, strict=True):
            layers[name].register_forward_hook(partial(_show, shown))
        if batch_statistics:
            for layer in layers.values():
                if isinstance(layer, BatchNorm):
                    layer.track_running_stats = False
                    layer.running_mean = layer.running_var = layer.num_batches_tracked = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output."""
        return self.network(*args, **kwargs)


class _Margin(nn.Module):
    def forward(self, features: Tensor, margins: Tensor) -> Tensor:
        return torch.maximum(features, margins.to(features.dtype).view(1, -1, *[1] * (features.dim() - 2)))


def _show(shown: nn.Module, norm: nn.Module, _args: Any, features: Tensor) -> None:
    weight, bias = norm.get_parameter("weight"), norm.get_parameter("bias")
    shown(features, batch_norm_margins(weight, bias))
