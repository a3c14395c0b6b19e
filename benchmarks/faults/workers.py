"""Data whose loader has worker processes, one of which may fail."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kd_lightning.core.progress import completed_batches
from kd_lightning.data import MNIST
from kd_lightning.data.loaders import ResumableLoader

ROWS, BATCHES, FAULTY = 16, 4, 5
"""Images a batch, batches an epoch, and the batch in which a worker fails."""


class WorkerData(LightningDataModule):
    """Digits in a fixed order: four batches an epoch, and two of validation."""

    def __init__(self) -> None:
        super().__init__()
        self.fault = ""
        self.marker = Path("/dev/null")

    def train_dataloader(self) -> Any:
        """Make the loader with a worker, whose position is saved."""
        return _WorkerLoader(BATCHES, partial(completed_batches, self.trainer), self)

    def val_dataloader(self) -> Any:
        """Make the loader of the validation, without workers."""
        return DataLoader(_Batches(self, is_faulty=False), batch_size=None, sampler=range(100, 102))


class _WorkerLoader(ResumableLoader[tuple[Tensor, Tensor]]):
    def __init__(self, length: int, completed_batches: Any, data: WorkerData) -> None:
        super().__init__(length, completed_batches)
        self.batches = _Batches(data)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        first = self._position()
        positions = range(first, first + self.length)
        batches = DataLoader(
            self.batches, batch_size=None, sampler=positions, num_workers=1, multiprocessing_context="fork"
        )
        for position, batch in zip(positions, batches, strict=True):
            self._given = position + 1
            yield batch

    def _batch(self, position: int) -> tuple[Tensor, Tensor]:
        return self.batches[position]


class _Batches(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, data: WorkerData, is_faulty: bool = True) -> None:
        self.images, self.labels = MNIST().train()
        self.data, self.is_faulty = data, is_faulty

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        if self.is_faulty and self.data.fault and position == FAULTY:
            self.data.marker.touch()
            if self.data.fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(5, "Input/output error", "digits.bin")
        rows = torch.arange(ROWS) + ROWS * position
        return self.images[rows].float().expand(-1, 3, -1, -1) / 255, self.labels[rows]


def fail(run: Any, fault: str) -> None:
    """Let the worker of a run fail: ``killed``, or with an error of the disk, ``unreadable``."""
    assert isinstance(run.data, WorkerData)
    run.data.fault, run.data.marker = fault, run.marker
