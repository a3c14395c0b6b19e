"""Two measures that no load of the machine moves: Python calls a step, and a run's peak memory."""

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
"""Of which four are logged, with `log_every_n_steps` of 50."""
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
    """Python calls a step, those of hooks, logs and the bar included."""

    last = 0.0
    """Of the last run: the command line makes a counter of its own."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Starts and stops."""
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
    """Those of a run of a shipped configuration in a new folder, for one epoch on the CPU."""
    given = [f"--config=configs/mnist/{config}.yaml", f"--trainer.default_root_dir={folder}/{time.monotonic_ns()}"]
    if config == "distilled":
        given.append(f"--model.teacher.init_args.checkpoint={teacher}")
    return ["fit", *given, "--trainer.accelerator=cpu", "--trainer.max_epochs=1", *more]


def calls_a_step(config: str, teacher: Path, *more: str) -> float:
    """Python calls a step of a run of the command line, with all that it has by default.

    It is a process of its own: some modules, torch.compile's above all, put calls of theirs around every step.
    """
    short = [f"--trainer.limit_train_batches={FIRST + STEPS + 30}", "--trainer.limit_val_batches=0"]
    with TemporaryDirectory() as folder:
        given = arguments(config, teacher, folder, *more, *short, "--trainer.callbacks+=benchmarks.calls.Calls")
        return _said([sys.executable, "-m", "benchmarks.calls", *given])


def peak_memory(teacher: Path) -> float:
    """MiB that a distilled epoch takes over ``import lightning``, with data and cache resident (on Linux)."""
    with TemporaryDirectory() as folder:
        given = arguments("distilled", teacher, folder, "--trainer.callbacks+=TeacherCache")
        return _said([sys.executable, "-c", MEMORY, *given])


def _said(command: list[str]) -> float:
    """The number that a process ends with; the bar is drawn, on a terminal that nobody sees."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FORCE_COLOR": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    if run.returncode:
        raise RuntimeError(run.stderr)
    return float(run.stdout.rpartition("found:")[2])


if __name__ == "__main__":
    from benchmarks import calls  # whose counter the command line finds

    code = command_line(sys.argv[1:])
    print("found:", calls.Calls.last)
    sys.exit(code)
