"""A network in bfloat16 beside others in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class BFloat16Autocast(nn.Module):
    """Computes in bfloat16, whatever the rest of a run computes in: a live teacher at half the price.

    Its convolutions and matrix products are autocast, its weights stay what they are, and what it returns is float32
    again. On a CPU that pays where there is AVX-512 BF16 or AMX, and more under `ChannelsLast`. Of the origin's
    teacher's logits it rounds up to 0.4 % of the largest away. The network's layers are seen as ``network.<layer>``.

    Args:
        network: Does the work.

    Example:
        >>> teacher = BFloat16Autocast(nn.Sequential(nn.Linear(4, 10)))
        >>> teacher(torch.zeros(2, 4)).dtype, teacher.network[0].weight.dtype
        (torch.float32, torch.float32)
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The network's output; a tensor in half precision is made float32."""
        first = next((value for value in (*inputs, *named.values()) if isinstance(value, Tensor)), None)
        with torch.autocast("cpu" if first is None else first.device.type, torch.bfloat16):
            output = self.network(*inputs, **named)
        return output.float() if isinstance(output, Tensor) and output.dtype == torch.bfloat16 else output
