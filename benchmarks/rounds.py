"""Shared by the benchmarks of speed: kinds of step measured alternately in rounds, and statistics of the rounds."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from scipy.stats import bootstrap  # pyright: ignore[reportMissingTypeStubs]

from kd_lightning.__main__ import main as command_line

WARM_UP = 20
STEPS = 150
"""Measured steps; three of them are logged, and none ends an epoch."""


class Clock(Callback):
    """Measure the CPU seconds a step, of all threads, between two steps of a run."""

    last = 0.0
    """Result of the last run, as a class attribute: the command line builds the callback itself."""

    def __init__(self, first: int = WARM_UP, steps: int = STEPS) -> None:
        self.first = first
        self.steps = steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Start at the first measured step, and stop after the last."""
        if batch_idx == self.first:
            self.started = time.process_time()
        elif batch_idx == self.first + self.steps:
            Clock.last = (time.process_time() - self.started) / self.steps


def fit(*given: str) -> float:
    """Measure the CPU seconds a step of a run from the command line, its progress bar drawn on a pseudo-terminal."""
    length = ["--trainer.max_epochs=1", f"--trainer.limit_train_batches={WARM_UP + STEPS + 30}"]
    quick = ["--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0", "--trainer.accelerator=cpu"]
    os.environ["FORCE_COLOR"] = "1"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        clock = "--trainer.callbacks+=benchmarks.rounds.Clock"
        code = command_line(["fit", *given, *length, *quick, clock])
    if code:
        raise RuntimeError(said.getvalue())
    return Clock.last


def loop(step: Callable[[], None], steps: int = STEPS) -> float:
    """Measure the CPU seconds of a step of a plain loop."""
    for _ in range(WARM_UP):
        step()
    started = time.process_time()
    for _ in range(steps):
        step()
    return (time.process_time() - started) / steps


def rounds(kinds: Mapping[str, Callable[[], float]], number: int) -> dict[str, list[float]]:
    """Measure each kind once a round, in turn, so that other load of the machine affects all alike."""
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(number):
        print(f"round {turn + 1} of {number}", file=sys.stderr)
        names = list(kinds)[:: 1 if turn % 2 else -1]
        for name in names:
            found[name].append(kinds[name]())
    return found


def ratio(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """Return the median of the rounds' ratios, with its 95 % interval by the bootstrap."""
    quotients = [a / b for a, b in zip(ours, theirs, strict=True)]
    interval: Any = bootstrap((quotients,), median, vectorized=False, n_resamples=2000, rng=0).confidence_interval
    return median(quotients), float(interval.low), float(interval.high)


def fresh(folder: Path) -> str:
    """Return the argument that names an empty directory."""
    return f"--trainer.default_root_dir={folder / str(time.monotonic_ns())}"
