"""The flag that all processes of a run share at each optimizer step: a value is not finite, or the run is to stop."""

from __future__ import annotations

import torch
import torch.distributed as dist

from kd_lightning.core.distributed import is_distributed


class StepFlag:
    """Agrees between processes, in one collective operation a step, that a value is not finite or that the run stops.

    A signal reaches the processes at different steps, so none of them may stop by itself: a signal handler calls
    `request_stop`, and `stop_signal` is set on all processes in the same optimizer step.
    """

    requested_signal = 0
    """Number of the signal that this process has received; 0 for none."""
    stop_signal = 0
    """Number of the signal at which every process stops after the current step; 0 for none."""

    def request_stop(self, signal: int) -> None:
        """Ask all processes to stop after an optimizer step; may be called in a signal handler.

        Args:
            signal: Number of the signal, above 0.
        """
        self.requested_signal = signal

    def exchange(self, is_bad: bool, device: torch.device) -> bool:
        """Tell if a value is not finite on any process, and set `stop_signal`; every process calls this.

        Args:
            is_bad: A value on this process is not finite.
            device: The device of the collective operation.
        """
        if not is_distributed():
            self.stop_signal = self.requested_signal
            return is_bad
        both = torch.tensor((int(is_bad), self.requested_signal), device=device)
        dist.all_reduce(both, dist.ReduceOp.MAX)
        is_bad_anywhere, self.stop_signal = both.tolist()
        return bool(is_bad_anywhere)
