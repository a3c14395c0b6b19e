"""The speed of half precision on a device, measured."""

from __future__ import annotations

import time

import torch

SIZES = {"cpu": 384, "mps": 2048, "cuda": 4096}
"""Rows of the square matrices, so that a product takes milliseconds on each kind of device."""


def precision_gains(device: torch.device, repeats: int = 5) -> dict[str, float]:
    """Measure how many times as fast as in float32 a large matrix product is in bf16, and on GPUs in fp16.

    Example:
        >>> list(precision_gains(torch.device("cpu"), repeats=1))
        ['bf16']
    """
    size = SIZES[device.type]
    times = {dtype: _seconds(device, dtype, size, repeats) for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    gains = {"bf16": times[torch.float32] / times[torch.bfloat16], "fp16": times[torch.float32] / times[torch.float16]}
    return gains if device.type != "cpu" else {"bf16": gains["bf16"]}


def _seconds(device: torch.device, dtype: torch.dtype, size: int, repeats: int) -> float:
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    found: list[float] = []
    for _ in range(repeats + 1):  # the first one chooses a kernel
        _wait(device)
        start = time.perf_counter()
        matrix @ matrix  # pyright: ignore[reportUnusedExpression]
        _wait(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
