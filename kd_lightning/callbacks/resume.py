"""Random numbers that are the same after a resume at any step."""

from __future__ import annotations

import os
import random
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from kd_lightning.core.lightning_internals import count_epoch_as_started
from kd_lightning.core.progress import completed_batches
from kd_lightning.core.resume_point import correct_counters


class ExactResume(Callback):
    """Seed all random generators at every training batch, so that dropout and the like are the same after a resume.

    At the start of each training batch the generators of torch (CPU and the module's device), numpy and Python are
    seeded from (seed, number of the batch, rank), independently of all numbers drawn before, in validation or in an
    earlier process. Put it before callbacks that draw numbers. A loader and ``on_after_batch_transfer`` draw theirs
    earlier, and have to be repeatable themselves, as those of `kd_lightning.data` are.

    Checkpoints get the counters with which Lightning resumes where the run was. A validation that was due or had begun
    when the checkpoint was written, which Lightning omits, is run at the resume.

    Args:
        seed: The seed of the run; that of ``seed_everything`` by default, and 0 if that was not called. A resumed run
            keeps the seed in its checkpoint.

    Example:
        >>> trainer = Trainer(callbacks=[ExactResume(seed=7)], logger=False, enable_checkpointing=False)
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed
        self._seed = seed or 0
        self._rank = 0
        self._device: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the seed, which `load_state_dict` replaces by a checkpoint's."""
        self._seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed

    def state_dict(self) -> dict[str, Any]:
        """Return the seed of the run."""
        return {"seed": self._seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume with the seed that the run was started with."""
        self._seed = state_dict["seed"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Correct Lightning's counters, so that a validation which was due or had begun is run at the resume."""
        correct_counters(trainer, checkpoint)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the rank and the generator of the device, which stay the same during the fit."""
        self._rank = trainer.global_rank
        device = pl_module.device
        self._device = None if device.type == "cpu" else torch.get_device_module(device)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed the generators of torch, numpy and Python."""
        loop: Any = trainer.fit_loop
        # After a resume at the end of an epoch Lightning does not count the next epoch as started; a second resume in
        # that epoch would take it for a new one and train an epoch too many.
        if loop.epoch_progress.total.started == loop.epoch_progress.total.processed:
            count_epoch_as_started(trainer)
        # The batch and not the optimizer step, because accumulated batches must differ; hashed, because neighbouring
        # seeds of a generator may give correlated numbers.
        text = f"{self._seed} {completed_batches(trainer)} {self._rank}"
        seed = int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
        random.seed(seed)
        np.random.seed(seed % 2**32)
        # torch.manual_seed visits every backend and formats a stack trace for each that is not initialised
        torch.default_generator.manual_seed(seed)
        if self._device is not None:
            self._device.manual_seed(seed)
