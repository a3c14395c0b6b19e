"""A worker of a loader that is killed, as by a system without memory, or cannot read its data."""

from __future__ import annotations

from benchmarks.faults import workers
from benchmarks.faults.trial import Fault


def loader_faults() -> list[Fault]:
    """List both."""
    return [
        Fault("loader", "worker killed", lambda run, _: workers.fail(run, "killed"), says="worker"),
        Fault("loader", "worker that cannot read", lambda run, _: workers.fail(run, "unreadable"), says="digits.bin"),
    ]
