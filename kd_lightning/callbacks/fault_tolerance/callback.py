"""The callback that protects the files of a run from the run's own faults."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from kd_lightning.callbacks.fault_tolerance.run_files import attach_run_files
from kd_lightning.core.finite_check import attach_finite_check


class FaultTolerance(Callback):
    """Protect the files of a run from faults; for any LightningModule, and on by default on the command line.

    Its parts are callbacks of their own, which it attaches to the trainer for the length of a fit:

    - `kd_lightning.core.finite_check.FiniteCheck` stops the fit at the first optimizer step whose loss or gradients are
      not finite, on all processes together, and refuses to write weights that are not.
    - `kd_lightning.callbacks.fault_tolerance.run_files.RunFiles` writes checkpoints that a kill or a full disk cannot
      tear, finds damaged ones when they are read, and keeps a second run out of a directory whose files are replaced.

    Example:
        >>> trainer = Trainer(callbacks=[FaultTolerance()], logger=False, enable_checkpointing=False)
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach the parts in front of the trainer's other callbacks."""
        if stage == "fit":
            attach_finite_check(trainer, pl_module)
            attach_run_files(trainer, pl_module)
