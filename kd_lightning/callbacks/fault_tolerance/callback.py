"""The callback that protects the files of a run from the run's own faults."""

from __future__ import annotations

import signal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from kd_lightning.callbacks.fault_tolerance.group_timeout import GroupTimeout
from kd_lightning.callbacks.fault_tolerance.ranks import is_launched_script, leave_group
from kd_lightning.callbacks.fault_tolerance.run_files import attach_run_files
from kd_lightning.callbacks.fault_tolerance.saves import skip_saves_on_exception
from kd_lightning.callbacks.fault_tolerance.signals import DeferredSignals
from kd_lightning.core.attached import attach, detach
from kd_lightning.core.errors import UsageError
from kd_lightning.core.finite_check import attach_finite_check
from kd_lightning.core.resume_point import is_resume_point


class FaultTolerance(Callback):
    """Protect the files of a run from faults; for any LightningModule, and on by default on the command line.

    - `kd_lightning.core.finite_check.FiniteCheck`, which is attached for the length of a fit, stops it at the first
      optimizer step whose loss or gradients are not finite, on all processes together, and refuses to write weights
      that are not.
    - ``save_on_exception`` and the like save only where a resume is exact: between two optimizer steps or epochs, and
      in a validation, which `ExactResume` runs again. In the midst of a step the last checkpoint stays.
    - SIGTERM, and SIGINT if wanted, end the run after an optimizer step, the same one on all processes.
    - An error of one of several processes ends all of them: none makes an operation between processes, or saves. A
      process that a launcher started prints one line and exits.
    - A process that does not answer in training ends the run after `step_timeout`.
    - `kd_lightning.callbacks.fault_tolerance.run_files.RunFiles` writes checkpoints that a kill or a full disk cannot
      tear, finds damaged ones when they are read, and keeps a second run out of a directory whose files are replaced.

    Args:
        handles_sigint: Handle Ctrl-C, or SIGINT, as SIGTERM; a second one interrupts at once and saves nothing. By
            default the handlers of your program stay as they are, and an interrupt in a step saves nothing.
        step_timeout: Seconds that processes wait for each other between training batches; None for the time-out of the
            strategy, which holds everywhere else.

    Raises:
        UsageError: `step_timeout` is not above 0.

    Example:
        >>> trainer = Trainer(callbacks=[FaultTolerance()], logger=False, enable_checkpointing=False)
    """

    def __init__(self, handles_sigint: bool = False, step_timeout: float | None = 60.0) -> None:
        if step_timeout is not None and not 0 < step_timeout < 1e6:
            raise UsageError(f"step_timeout={step_timeout} must be a number of seconds above 0, e.g. 60, or None")
        self.handles_sigint = handles_sigint
        self.step_timeout = step_timeout
        self._signals: DeferredSignals | None = None
        self._group_timeout: GroupTimeout | None = None

    @property
    def received_signal(self) -> int:
        """Number of the signal that stops, or has stopped, the fit; 0 for none."""
        return 0 if self._signals is None else self._signals.received

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach the parts that are callbacks of their own in front of the trainer's other callbacks."""
        self._signals = None
        if stage != "fit":
            return
        attach_finite_check(trainer, pl_module)
        attach_run_files(trainer, pl_module)
        if self._group_timeout is None and trainer.world_size > 1 and self.step_timeout is not None:
            self._group_timeout = GroupTimeout(self.step_timeout)
            attach(trainer, self._group_timeout)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle signals from now on."""
        flag = attach_finite_check(trainer, pl_module).flag
        self._signals = DeferredSignals(trainer, flag, self.handles_sigint)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save only what can be resumed exactly, and let no other process wait for this one."""
        is_stop = isinstance(exception, SIGTERMException)  # of all processes at the same step
        if isinstance(exception, SIGTERMException) and not is_launched_script(trainer):
            exception.code = 128 + (self.received_signal or signal.SIGTERM)  # the shell's convention; Lightning's is 0
        at_once = self._signals is not None and self._signals.stops_at_once
        if at_once or (trainer.world_size > 1 and not is_stop) or not is_resume_point(trainer):
            skip_saves_on_exception(trainer)
        if trainer.world_size > 1 and not is_stop:
            leave_group(trainer, exception)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the trainer to its former state."""
        if self._group_timeout is not None:
            detach(trainer, self._group_timeout)
            self._group_timeout = None
