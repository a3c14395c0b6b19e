"""The values of the first step that was not finite, kept on the device so that no step waits for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from kd_lightning.core.distributed import is_distributed
from kd_lightning.core.finite_tensors import greatest_magnitudes

TOTAL = "train/loss"
"""Name of the sum of a step's losses; no term can be called so in a module's logs."""


class Finding(NamedTuple):
    """A value that is not finite."""

    subject: str
    """Such as ``the loss of term 'kd'``."""
    value: str
    step: int
    """Number of the optimizer step."""
    is_local: bool = True
    """It became so on this process, and not in a reduction over the processes."""


def describe_losses(losses: Mapping[str, float], total: float | None) -> tuple[str, str] | None:
    """Name the first loss that is not finite, and all values; None if all are finite.

    Args:
        losses: The losses of a step by the names of their terms.
        total: Their sum, which a module may add a loss of its own to.

    Example:
        >>> describe_losses({"task": 1.5, "kd": float("nan")}, float("nan"))
        ("the loss of term 'kd'", 'task=1.5, kd=nan')
        >>> describe_losses({}, float("inf"))
        ('the training loss', 'inf')
    """
    values = ", ".join(f"{name}={value:g}" for name, value in losses.items())
    for name, value in losses.items():
        if not math.isfinite(value):
            return f"the loss of term {name!r}", values
    if total is None or math.isfinite(total):
        return None
    return "the training loss", values or f"{total:g}"


class DeviceRecord:
    """Checks the losses and gradients of each step in kernels alone, and is read once they have run.

    All state is in tensors that keep their place, so that a CUDA graph records the look with the step. Once a value is
    not finite, the record keeps the values of that step.

    Args:
        device: The device of the losses and gradients.
        max_skipped: Steps in a row whose gradients may be infinite, where a gradient scaler skips those; 0 without one.
    """

    def __init__(self, device: torch.device, max_skipped: int) -> None:
        self.max_skipped = max_skipped
        self.losses: dict[str, Tensor] = {}
        """Losses since the last optimizer step, without their graph."""
        self._bad, self._local_bad = torch.zeros(2, dtype=torch.bool, device=device)
        self._step, self._skipped = torch.zeros(2, dtype=torch.int64, device=device)
        self._first: dict[tuple[int, int, int], Tensor] = {}
        self._names: dict[tuple[int, int, int], list[str]] = {}
        self._shared = torch.zeros(2, dtype=torch.int64, device=device)
        is_pinned = device.type == "cuda"
        self._host = torch.zeros(2, dtype=torch.int64, pin_memory=is_pinned)
        self._event: Any = None if device.type == "cpu" else torch.get_device_module(device).Event()
        self._is_pending = False

    def look(
        self, optimizer: object, gradients: dict[str, Tensor], local_norms: list[Tensor], step: int | None
    ) -> None:
        """Add one optimizer step; launches kernels only.

        Args:
            optimizer: The optimizer of the step: the record keeps the values of each one.
            gradients: Its gradients by the names of the parameters.
            local_norms: Norms of this process's gradients before their reduction; none in a single process.
            step: Number of the step; None while a step is recorded as a CUDA graph, which counts its replays.

        Raises:
            RuntimeError: The first step of its kind is being recorded: its memory must be older than the graph.
        """
        losses, norms = list(self.losses.values()), greatest_magnitudes(list(gradients.values()))
        key = (id(optimizer), len(losses), len(norms))
        values = torch.cat((*(loss.float().reshape(1) for loss in losses), norms.float()))
        if key not in self._first:
            if step is None:
                raise RuntimeError("a step has another number of losses or gradients than the steps before it")
            self._first[key] = torch.zeros_like(values)
            self._names[key] = [*self.losses, *gradients]
        is_finite = torch.isfinite(values)
        bad_loss, bad_gradient = ~is_finite[: len(losses)].all(), ~is_finite[len(losses) :].all()
        local = ~torch.isfinite(torch.stack(local_norms)).all() if local_norms else bad_gradient
        if self.max_skipped:
            self._skipped.copy_(torch.where(bad_gradient, self._skipped + 1, 0))
            bad_gradient = self._skipped >= self.max_skipped
            local = local & bad_gradient
        if step is None:
            self._step.add_((~self._bad).long())
        else:
            self._step.copy_(torch.where(self._bad, self._step, step))
        first = self._first[key]
        first.copy_(torch.where(self._bad, first, values))
        self._local_bad.copy_(torch.where(self._bad, self._local_bad, bad_loss | local))
        self._bad.logical_or_(bad_loss | bad_gradient)
        self.losses = {}

    def send(self, signal: int) -> None:
        """Start to copy the flag to the host, after its reduction over the processes; waits for nothing.

        Args:
            signal: Number of the signal that this process has received, or 0.
        """
        if self._is_pending and not is_distributed():
            return
        self._shared[0].copy_(self._bad)
        self._shared[1].fill_(signal)
        if is_distributed():
            dist.all_reduce(self._shared, dist.ReduceOp.MAX)
        self._host.copy_(self._shared, non_blocking=True)
        if self._event is not None:
            self._event.record()
        self._is_pending = True

    def received(self) -> tuple[bool, int]:
        """Give the flag and the signal that were sent last; in a single process, nothing if they are under way.

        Several processes have to stop in the same step: each waits for the flag of the step before this one.
        """
        if not self._is_pending:
            return False, 0
        if self._event is not None:
            if is_distributed():
                self._event.synchronize()
            elif not self._event.query():
                return False, 0
        self._is_pending = False
        bad, signal = self._host.tolist()
        return bool(bad), signal

    def finding(self) -> Finding | None:
        """Describe the first value that was not finite on this process, or None; waits for the device."""
        if not self._bad:
            return None
        for key, first in self._first.items():
            values = dict(zip(self._names[key], first.tolist(), strict=True))
            losses = dict(list(values.items())[: key[1]])
            found = describe_losses({name: value for name, value in losses.items() if name != TOTAL}, losses.get(TOTAL))
            if found is not None:
                return Finding(*found, int(self._step))
            for name, value in list(values.items())[key[1] :]:
                if not math.isfinite(value) and (self._skipped or not self.max_skipped):
                    return Finding(f"the gradient of {name!r}", f"{value:g}", int(self._step), bool(self._local_bad))
        return Finding("a value", "unknown", int(self._step), bool(self._local_bad))
