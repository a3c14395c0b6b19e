"""Disks that are full or slow to tell so, directories that are read-only, and directories that vanish."""

from __future__ import annotations

import os
import resource
import shutil
import signal

from benchmarks.faults.moments import HALF, Action, at, disk_full, in_a_save, kill, marked
from benchmarks.faults.process import Ended, Run
from benchmarks.faults.trial import Fault, Stage, Truth


def disk_faults() -> list[Fault]:
    """List all."""

    def full(stage: str) -> Fault:
        def attach(run: Run, truth: Truth) -> None:
            in_a_save(stage, 3, marked(run.marker, disk_full), stays=True)

        return Fault("disk", f"full, {stage} of a checkpoint", attach, says="No space left on device")

    def full_at_stop(run: Run, truth: Truth) -> None:
        def action() -> None:
            in_a_save("middle", 1, disk_full, stays=True)
            kill(signal.SIGTERM)()

        at("after step", action)(run, truth)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, resource.RLIM_INFINITY))

    def read_only(run: Run) -> Action:
        def action() -> None:
            run.folder.chmod(0o555)
            obey_permissions()

        return action

    def locked(stage: Stage, truth: Truth) -> Ended:
        ended = stage.fit(lambda run: at("after step", read_only(run))(run, truth))
        stage.run.chmod(0o755)
        (stage.run / ".lock").unlink(missing_ok=True)  # it could not be removed
        return ended

    def vanished(run: Run, truth: Truth) -> None:
        at("after step", lambda: shutil.rmtree(run.folder))(run, truth)

    return [
        full("middle"),
        full("rename"),
        Fault("disk", "full in the save after SIGTERM", full_at_stop, says="No space left on device"),
        Fault("disk", "limit of a file's size", at("after step", limit), says="File too large"),
        Fault("disk", "directory made read-only", says="Permission denied", play=locked),
        Fault("disk", "directory removed", vanished, codes=(0, 2), loses=True),
    ]


def obey_permissions() -> None:
    """Take from this process the right of a superuser to write where permissions forbid it."""
    if os.geteuid() != 0:
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the structure, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, of 32 capabilities and of the others
    libc.capget(header, sets)
    sets[0] &= ~(1 << 1)  # CAP_DAC_OVERRIDE
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")
