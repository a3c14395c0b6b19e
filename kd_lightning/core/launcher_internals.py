"""Private names of Lightning and torch about processes: their launchers, signals and time-outs, under plain names.

`tests/core/test_lightning_contract.py` asserts each of them by name, like those of `lightning_internals`.
"""

# pyright: reportPrivateUsage=false, reportAttributeAccessIssue=false
from __future__ import annotations

import sys
from datetime import timedelta
from subprocess import Popen
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch.distributed.constants import default_pg_timeout


def host_handler(trainer: Trainer, number: int) -> Any:
    """Give the handler of a signal from before the fit."""
    return trainer._signal_connector._original_handlers.get(number)


def group_timeout(trainer: Trainer) -> timedelta:
    """Give the strategy's time-out of operations between processes; torch's default where it has none."""
    return getattr(trainer.strategy, "_timeout", None) or default_pg_timeout


def launched_scripts(trainer: Trainer) -> list[Popen[bytes]]:
    """List the processes that the launcher of scripts has started from this one."""
    launcher: Any = trainer.strategy.launcher
    return launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else []


def was_launched(trainer: Trainer) -> bool:
    """Tell if a launcher started this process: Lightning's for scripts, torchrun or a cluster's; not a notebook."""
    if not isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher) or hasattr(sys, "ps1"):
        return False
    return not launched_scripts(trainer) and trainer.strategy.cluster_environment.creates_processes_externally
