"""Signals that end a run at the end of an optimizer step, on all processes at the same one."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Trainer

from kd_lightning.core.launcher_internals import host_handler
from kd_lightning.core.lightning_internals import signal_connector
from kd_lightning.core.step_flag import StepFlag


class DeferredSignals:
    """Handles SIGTERM, and SIGINT if wanted, at the end of an optimizer step.

    Lightning defers SIGTERM to the end of a batch, whose gradients may wait for those of further batches, and on one
    process alone. Here the first signal asks for a stop by the `StepFlag` that all processes share, so that they save
    the same step together. Another SIGINT before that stops the process at once.

    The handlers last until Lightning restores those of before the fit, at its end. A handler of the host program for
    SIGTERM is called as Lightning calls it. Outside of the main thread no handler is changed.

    Args:
        trainer: At the start of training.
        flag: Shares the signal between processes.
        handles_sigint: Handle SIGINT, unless the process ignores it.
    """

    def __init__(self, trainer: Trainer, flag: StepFlag, handles_sigint: bool) -> None:
        self.trainer, self.flag = trainer, flag
        self.stops_at_once = False
        """A second SIGINT has interrupted a step."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._host_handler = host_handler(trainer, signal.SIGTERM)
        self._batches = trainer.fit_loop.epoch_loop.batch_progress.total
        self._started_at = self._batches.ready
        signal.signal(signal.SIGTERM, self._on_sigterm)
        if handles_sigint and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._on_sigint)

    @property
    def received(self) -> int:
        """Number of the signal that stops the run, on whichever process it was received; 0 for none."""
        return self.flag.stop_signal or self.flag.requested_signal

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        launcher: Any = self.trainer.strategy.launcher
        if launcher is not None and not self.flag.requested_signal:
            launcher.kill(number)
        self._request_stop(number)
        if callable(self._host_handler):
            self._host_handler(number, frame)

    def _on_sigint(self, number: int, frame: FrameType | None) -> None:
        if self.flag.requested_signal or self._batches.ready == self._started_at:  # nothing is to be lost before
            self.stops_at_once = True
            raise KeyboardInterrupt
        self._request_stop(number)

    def _request_stop(self, number: int) -> None:
        self.flag.request_stop(number)
        if self.trainer.world_size == 1 and self.trainer.accumulate_grad_batches == 1:
            signal_connector(self.trainer).received_sigterm = True  # at the end of this batch, and not of the next one
