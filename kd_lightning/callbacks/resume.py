"""Randomness that a run can be resumed on at any step."""

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


class ExactResume(Callback):
    """Seeds every batch by itself, so that dropout and all else that is random is the same after a resume.

    At the start of each training batch the generators of torch (CPU and the module's device), numpy and Python are
    seeded from (seed, number of the batch, rank): whatever was drawn before, in validation or in an earlier process,
    does not matter. Put it before callbacks that draw numbers themselves. What a loader or ``on_after_batch_transfer``
    draws comes earlier still, and is theirs to make repeatable as `kd_lightning.data` does.

    Args:
        seed: Where the seeds begin; that of ``seed_everything`` if not given, and 0 if that was not called. A run that
            is resumed keeps the seed in its checkpoint.

    Example:
        >>> trainer = Trainer(callbacks=[ExactResume(seed=7)], logger=False, enable_checkpointing=False)
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed
        self._seed = seed or 0
        self._rank = 0
        self._device: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Chooses the seed; a checkpoint's, if there is one, replaces it next."""
        self._seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed

    def state_dict(self) -> dict[str, Any]:
        """The seed."""
        return {"seed": self._seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume with the seed that the run was started with."""
        self._seed = state_dict["seed"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remembers what stays the same."""
        self._rank = trainer.global_rank
        device = pl_module.device
        self._device = None if device.type == "cpu" else torch.get_device_module(device)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seeds everything."""
        loop: Any = trainer.fit_loop
        # Resumed where an epoch had just ended, Lightning does not count the next one as started; a second resume in
        # that epoch would then take it for a new one and train an epoch too many.
        if loop.epoch_progress.total.started == loop.epoch_progress.total.processed:
            count_epoch_as_started(trainer)
        # By the batch and not the optimizer step, for the batches of one accumulated group must differ; hashed, so that
        # neighbouring seeds, batches and ranks share nothing.
        text = f"{self._seed} {completed_batches(trainer)} {self._rank}"
        seed = int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
        random.seed(seed)
        np.random.seed(seed % 2**32)
        # torch.manual_seed would visit every backend, and format a stack trace for each that has not started yet
        torch.default_generator.manual_seed(seed)
        if self._device is not None:
            self._device.manual_seed(seed)
