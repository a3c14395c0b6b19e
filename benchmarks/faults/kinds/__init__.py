"""The faults of `make test-faults`, by kind; each is injected into the run of every family.

Runs of one family under other settings get the signals alone.

=========  ======================================================================
`signals`  SIGKILL, SIGTERM and SIGINT, in saves and elsewhere, once and twice
`values`   values that are not finite
`disks`    disks that are full or read-only, and directories that vanish
`files`    damaged files, and second processes
`loaders`  a worker of a loader that fails; in the run that has one
=========  ======================================================================
"""

from __future__ import annotations

from benchmarks.faults.families import SETTINGS
from benchmarks.faults.kinds.disks import disk_faults
from benchmarks.faults.kinds.files import file_faults
from benchmarks.faults.kinds.loaders import loader_faults
from benchmarks.faults.kinds.signals import signal_faults
from benchmarks.faults.kinds.values import value_faults
from benchmarks.faults.trial import Fault


def faults(family: str, seed: int = 0) -> list[Fault]:
    """List the faults of a run; the seed chooses random moments."""
    if family == "loader with a worker":
        return [*signal_faults(seed), *loader_faults()]
    if family in SETTINGS:
        return signal_faults(seed)
    return [*signal_faults(seed), *value_faults(), *disk_faults(), *file_faults()]
