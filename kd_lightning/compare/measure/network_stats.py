"""The costs of a network: parameters, bytes, FLOPs and latency."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kd_lightning.compare.measure.measures import NetworkStats


def measure_costs(network: nn.Module, inputs: Any) -> NetworkStats:
    """Measure a network on one sample, and on 64 copies of it.

    Args:
        network: The network; its training mode is restored.
        inputs: A batch of its inputs, (N, ...); only the first sample is used.
    """
    stats = NetworkStats(
        name=type(network).__name__,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        bytes=len(save(dict(network.state_dict()))),
        flops=None,
        latency_1_ms=None,
        latency_64_ms=None,
    )
    if not isinstance(inputs, Tensor):
        return stats
    was_training, sample = network.training, inputs[:1]
    network.eval()
    with torch.no_grad():
        samples = sample.expand(64, *sample.shape[1:]).contiguous()
        with FlopCounterMode(display=False) as counter:
            network(sample)
        stats["flops"] = counter.get_total_flops()
        stats["latency_1_ms"] = milliseconds(lambda: network(sample), times=50)
        stats["latency_64_ms"] = milliseconds(lambda: network(samples), times=10)
    network.train(was_training)
    return stats


def milliseconds(call: Callable[[], object], times: int = 5) -> float:
    """Measure the median duration of some calls, after two calls to warm up."""
    for _ in range(2):
        call()
    spent: list[float] = []
    for _ in range(times):
        start = perf_counter()
        call()
        spent.append(perf_counter() - start)
    return 1000 * median(spent)
