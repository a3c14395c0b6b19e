"""Two measures that do not depend on the machine's load: Python calls a step, and peak memory of a run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT

from kd_lightning.__main__ import main as command_line

ROOT = Path(__file__).parent.parent
FIRST, STEPS = 20, 200
"""Measured steps; four of them are logged, with `log_every_n_steps` of 50."""
MEMORY = """
import sys

def peak():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

import lightning.pytorch
before = peak()
from kd_lightning.__main__ import main
code = main(sys.argv[1:])
print("found:", peak() - before)
sys.exit(code)
"""


class Calls(Callback):
    """Count Python calls a step, with those of hooks, logs and the progress bar."""

    last = 0.0
    """Result of the last run, as a class attribute: the command line builds the callback itself."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Start at the first measured step, and stop after the last."""
        if batch_idx == FIRST:
            self.count = 0
            sys.setprofile(self._look)
        elif batch_idx == FIRST + STEPS:
            sys.setprofile(None)
            Calls.last = self.count / STEPS

    def _look(self, frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            self.count += 1


def arguments(config: str, teacher: Path, folder: str, *more: str) -> list[str]:
    """Return the arguments for one epoch of a shipped configuration on the CPU, in a new directory."""
    given = [f"--config=configs/mnist/{config}.yaml", f"--trainer.default_root_dir={folder}/{time.monotonic_ns()}"]
    if config == "distilled":
        given.append(f"--model.teacher.init_args.checkpoint={teacher}")
    return ["fit", *given, "--trainer.accelerator=cpu", "--trainer.max_epochs=1", *more]


def calls_a_step(config: str, teacher: Path, *more: str) -> float:
    """Count Python calls a step of a run from the command line, with all its defaults.

    The run has its own process, because some imported modules, above all torch.compile, add calls to every step.
    """
    short = [f"--trainer.limit_train_batches={FIRST + STEPS + 30}", "--trainer.limit_val_batches=0"]
    with TemporaryDirectory() as folder:
        given = arguments(config, teacher, folder, *more, *short, "--trainer.callbacks+=benchmarks.calls.Calls")
        return _said([sys.executable, "-m", "benchmarks.calls", *given])


def peak_memory(teacher: Path) -> float:
    """Measure the MiB of a distilled epoch above ``import lightning``, with data and cache resident (on Linux)."""
    with TemporaryDirectory() as folder:
        given = arguments("distilled", teacher, folder, "--trainer.callbacks+=TeacherCache")
        return _said([sys.executable, "-c", MEMORY, *given])


def _said(command: list[str]) -> float:
    """Return the number that a process prints last; its progress bar is drawn on a pseudo-terminal."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FORCE_COLOR": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    if run.returncode:
        raise RuntimeError(run.stderr)
    return float(run.stdout.rpartition("found:")[2])


if __name__ == "__main__":
    from benchmarks import calls  # the module whose counter the command line imports

    code = command_line(sys.argv[1:])
    print("found:", calls.Calls.last)
    sys.exit(code)
