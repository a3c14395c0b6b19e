"""The end of a process whose fit has failed, so that no other process waits for it."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback

import torch.distributed as dist
from lightning.pytorch import Trainer

from kd_lightning.core.directory_lock import release_all
from kd_lightning.core.failures import describe, exit_code, is_of_another_process, wants_traceback
from kd_lightning.core.launcher_internals import launched_scripts, was_launched
from kd_lightning.core.torch_internals import abort_process_groups

PATIENCE = 5.0
"""Seconds that the main process gives others, which are about to end, for their own messages."""


def leave_group(trainer: Trainer, error: BaseException) -> None:
    """Make no other process wait for this one, whose fit has failed; no operation between processes is made.

    A process that a launcher has started, such as torchrun or Lightning's for scripts, prints one line and exits, so
    that the launcher ends the others. The user's own process, e.g. of a script or a notebook, ends the processes that
    it has started, and the error goes on to its program.

    Args:
        trainer: The trainer of several processes, in the handling of the error.
        error: The error that ends the fit.
    """
    if was_launched(trainer):
        if wants_traceback():
            traceback.print_exception(error)
        print(f"kd-lightning (process {trainer.global_rank}): {describe(error)}", file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        release_all()
        os._exit(exit_code(error))
    abort_process_groups()
    scripts = launched_scripts(trainer)
    deadline = time.monotonic() + (PATIENCE if is_of_another_process(error) else 0)
    while time.monotonic() < deadline and any(script.poll() is None for script in scripts):
        time.sleep(0.05)
    for script in scripts:
        if script.poll() is None:
            script.send_signal(signal.SIGKILL)


def is_launched_script(trainer: Trainer) -> bool:
    """Tell if the main process has started this one, and kills itself where this one ends first with an exit code."""
    return trainer.local_rank > 0 and was_launched(trainer) and not dist.is_torchelastic_launched()


def wait_for_main_process(trainer: Trainer) -> None:
    """Wait in a process that Lightning's launcher has started until the main process has ended, for a few seconds."""
    main, deadline = os.getppid(), time.monotonic() + PATIENCE
    while is_launched_script(trainer) and time.monotonic() < deadline and os.getppid() == main:
        time.sleep(0.05)
