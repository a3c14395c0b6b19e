"""Runs with the files of the command line's, whose weights and rows of metrics are compared."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule
from torch import Tensor

from kd_lightning.cli.run_dir import add_default_callbacks
from kd_lightning.cli.run_loggers import MetricsFile
from tests import toys


class Result(NamedTuple):
    """What a run leaves."""

    weights: dict[str, Tensor]
    rows: list[dict[str, str]]


def with_validation(**changes: Any) -> Any:
    return toys.data(**{"val_size": 32} | changes)


def fit(
    folder: Path,
    learner: LightningModule,
    *callbacks: Callback,
    data: Callable[[], Any] = with_validation,
    ckpt_path: Any = None,
    **changes: Any,
) -> Result:
    """Three epochs of four batches with the command line's callbacks, or as the trainer's `changes` say."""
    whole = add_default_callbacks(list(callbacks), folder, learner, checkpoints=True, progress_bar=False)
    trainer = toys.trainer(folder, logger=[MetricsFile(folder)], num_sanity_val_steps=0, **changes)
    trainer.callbacks = whole
    trainer.fit(learner, data(), ckpt_path=ckpt_path)
    return Result(toys.weights(learner), rows(folder))


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without empty cells; none where the run has no such file."""
    path = folder / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as written:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(written)]


def same(first: Result, second: Result) -> bool:
    """Equal weights, bit for bit, and equal rows."""
    return toys.same(first.weights, second.weights) and first.rows == second.rows
