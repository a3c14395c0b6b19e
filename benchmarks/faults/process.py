"""Runs in processes forked from this one, which has imported everything and computed nothing."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils import tensorboard  # noqa: F401 (once, for all processes that are forked)

from benchmarks.faults.families import Family, network_of
from kd_lightning.cli.engine import CLI
from kd_lightning.cli.errors import report_errors
from kd_lightning.cli.log_filters import expected_messages_hidden
from kd_lightning.cli.run_dir import add_default_callbacks
from kd_lightning.cli.run_loggers import default_loggers
from tests import toys

PATIENCE = 120.0
"""Seconds after which a process counts as one that hangs."""


@dataclass(frozen=True)
class Ended:
    """How a process has ended."""

    code: int | None
    """Its exit code, minus the number of the signal that killed it, or None if it was still running."""
    output: str
    seconds: float

    @property
    def lines(self) -> int:
        """The number of lines of ours; a traceback counts as all of its lines."""
        lines = self.output.splitlines()
        start = next((i for i, line in enumerate(lines) if line.startswith("Traceback")), len(lines))
        return sum(line.startswith("kd-lightning") for line in lines[:start]) + len(lines) - start


class Process:
    """A forked process.

    Args:
        function: Its program; returns its exit code.
        output: The file that it prints to.
        temporary: Its directory of temporary files.
        environment: Further variables of its environment.
    """

    def __init__(self, function: Callable[[], int], output: Path, temporary: Path, **environment: str) -> None:
        self.output, self._since = output, time.monotonic()
        sys.stdout.flush()
        self.number = os.fork()
        if self.number == 0:
            _be(function, output, os.environ | environment | {"TMPDIR": str(temporary)})

    def is_running(self) -> bool:
        """Return True until the process has ended."""
        found = os.waitid(os.P_PID, self.number, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return found is None

    def wait(self, patience: float = PATIENCE) -> Ended:
        """Wait for the end; a process that has none in time is killed with those that it has started."""
        deadline = time.monotonic() + patience
        while (is_running := self.is_running()) and time.monotonic() < deadline:
            time.sleep(0.005)
        seconds = time.monotonic() - self._since
        if is_running:
            os.killpg(self.number, signal.SIGKILL)
        _, status = os.waitpid(self.number, 0)
        code = None if is_running else os.waitstatus_to_exitcode(status)
        return Ended(code, self.output.read_text(errors="replace"), seconds)


def _be(function: Callable[[], int], output: Path, environment: dict[str, str]) -> None:
    """Be the forked process: never return to the caller's code."""
    code = 1
    try:
        os.setsid()
        os.environ.update(environment)
        tempfile.tempdir = None
        os.chdir(output.parent)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with output.open("a") as stream:
            for number in (1, 2):
                os.dup2(stream.fileno(), number)
        code = function()
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


@dataclass
class Run:
    """A run of a family, before it begins, for a fault to be attached to."""

    family: Family
    folder: Path
    marker: Path
    module: LightningModule
    callbacks: list[Callback]
    data: LightningDataModule
    changes: dict[str, Any] = field(default_factory=dict)
    """Arguments of the trainer."""

    @property
    def student(self) -> nn.Module:
        """The network that learns."""
        return network_of(self.family, self.module, self.callbacks, self.family.student)

    @property
    def other(self) -> nn.Module:
        """The network whose outputs the student learns from."""
        return network_of(self.family, self.module, self.callbacks, self.family.other)

    def add(self, *callbacks: Callback) -> None:
        """Add callbacks to the run."""
        self.callbacks += callbacks


class BuiltRun(CLI):
    """The command line's ``fit`` of objects that are built: its end, messages and exit codes without its parsing."""

    def __init__(self, trainer: Trainer, model: LightningModule, data: LightningDataModule, ckpt_path: Any) -> None:
        self.command, self.handles_sigint, self.settings, self.config = "fit", True, [], Namespace()
        self.trainer, self.model, self.datamodule, self.ckpt_path = trainer, model, data, ckpt_path


Attach = Callable[[Run], object]


def fit(
    family: Family,
    folder: Path,
    *attached: Attach,
    marker: Path = Path("/dev/null"),
    ckpt_path: Path | None = None,
    after: Callable[[Trainer, LightningModule], object] = lambda trainer, module: None,
) -> int:
    """Run ``kd-lightning fit`` in this process; returns its exit code.

    Args:
        family: The run.
        folder: The run directory; beside it, ``saves`` lists each checkpoint that was written, with its step.
        attached: Change the run before it begins.
        marker: The file that a fault writes when it happens.
        ckpt_path: The checkpoint to resume.
        after: Called after a whole run.
    """
    seed_everything(0, verbose=False)
    run = Run(family, folder, marker, family.module(), list(family.callbacks()), family.data(), {**family.changes})
    for attach in attached:
        attach(run)
    trainer = toys.trainer(folder, logger=default_loggers(folder), num_sanity_val_steps=0, **run.changes)
    callbacks: Any = add_default_callbacks(run.callbacks, folder, run.module, True, False, handles_sigint=True)
    vars(trainer)["callbacks"] = callbacks
    _list_saves(trainer, folder.with_name("saves"))

    def command() -> int:
        with expected_messages_hidden():
            BuiltRun(trainer, run.module, run.data, None if ckpt_path is None else str(ckpt_path)).run()
        after(trainer, run.module)
        return 0

    return report_errors(command)


def _list_saves(trainer: Trainer, path: Path) -> None:
    """Append the name and the step of each checkpoint to a file, once it is written."""
    save = trainer.save_checkpoint

    def listed(filepath: Any, *args: Any, **kwargs: Any) -> None:
        before = _identity(filepath)
        save(filepath, *args, **kwargs)
        if trainer.is_global_zero and _identity(filepath) != before:
            with path.open("a") as stream:
                stream.write(f"{Path(filepath).name} {trainer.global_step}\n")

    vars(trainer)["save_checkpoint"] = listed


def _identity(path: Any) -> Sequence[int]:
    if not Path(path).exists():
        return ()
    found = Path(path).stat()
    return found.st_ino, found.st_mtime_ns
