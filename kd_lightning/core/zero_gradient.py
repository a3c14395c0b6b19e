"""Values whose gradient is zero, for losses that do not count at a step."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


def with_zero_gradient(value: Tensor, tensors: list[Tensor]) -> Tensor:
    """Return a value with a gradient of zero for tensors that it was not computed from.

    Every process then finds a gradient for every parameter, as DistributedDataParallel expects.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> with_zero_gradient(torch.tensor(3.0), [weight]).backward()
        >>> weight.grad
        tensor([0., 0.])
    """
    return cast("Tensor", _ZeroGradient.apply(value, *tensors)) if tensors else value


def zero_of(value: Tensor) -> Tensor:
    """Return 0 that is part of a value's graph, with a gradient of exactly zero even where the value is NaN.

    Example:
        >>> value = torch.tensor(float("nan"), requires_grad=True)
        >>> zero = zero_of(value)
        >>> zero.backward()
        >>> zero.item(), value.grad.item()
        (0.0, 0.0)
    """
    return cast("Tensor", _Zero.apply(value))


class _ZeroGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        return None, *(torch.zeros_like(tensor) for tensor in ctx.saved_tensors)


class _Zero(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return torch.zeros_like(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return torch.zeros_like(gradients[0])
