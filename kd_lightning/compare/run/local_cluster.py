"""A dask cluster of processes on this machine, each with one thread, which ends at once with its parent."""

from __future__ import annotations

import logging
import os
import re
import signal
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import active_children, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import dask
import psutil
from distributed import Client, LocalCluster

from kd_lightning.compare.messages import Failed
from kd_lightning.compare.run.dask_engine import silence
from kd_lightning.core.errors import UsageError

START_SECONDS = 120.0
"""Time for the processes to start, which takes a few seconds on an idle machine."""
NANNIES = "distributed.nanny"
"""The logger of those who watch over the processes."""
CONFIG = {
    "distributed.worker.daemon": False,  # a daemonic process cannot have the workers of a loader
    "distributed.worker.profile.enabled": False,
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.worker-ttl": None,  # a step may hold Python's lock for as long as it likes
    "distributed.scheduler.allowed-failures": 1000,  # `attempt_job` counts them, and blames no job that only waited
}


class Deaths(logging.Handler):
    """The processes that died, from what dask logs of them.

    Example:
        >>> deaths = Deaths()
        >>> deaths.emit(logging.makeLogRecord({"msg": "Worker process 17 was killed by signal 9"}))
        >>> deaths.explain(Failed("its process died", "", (3, 17))).reason
        'its process died (killed by signal 9): check if the machine ran out of memory'
    """

    def __init__(self) -> None:
        super().__init__()
        self.ends: dict[int, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the end of a process."""
        if found := re.fullmatch(r"Worker process (\d+) (?:was )?(.*)", record.getMessage()):
            self.ends[int(found[1])] = found[2]

    def explain(self, failed: Failed) -> Failed:
        """Add how the last process of a job ended, and the last line that it wrote or what to check."""
        end = self.ends.get(failed.pids[-1], "")
        last = "check if the machine ran out of memory" if end == "killed by signal 9" else failed.details
        how = f" ({end})" if end else ""
        return failed._replace(reason=f"{failed.reason}{how}{f': {last}' if last else ''}")


class Processes(LocalCluster):
    """Processes with one thread each; where there are several GPUs, each process sees one of them.

    Args:
        scratch: A directory for temporary files, which processes that are killed leave behind.
        gpus: The GPUs, as ``CUDA_VISIBLE_DEVICES`` names them.
    """

    def __init__(self, scratch: str, gpus: list[str]) -> None:
        self.scratch, self.gpus = scratch, gpus
        super().__init__(
            n_workers=0,
            threads_per_worker=1,
            memory_limit=0,  # else dask ends a process that needs more than its share
            scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
            silence_logs=logging.CRITICAL,
        )

    def new_worker_spec(self) -> dict[Any, Any]:
        """Describe the next process."""
        [(number, spec)] = cast("dict[Any, Any]", super().new_worker_spec()).items()
        # with two threads a process, a machine of few cores is much slower
        environment = {"OMP_NUM_THREADS": "1", "TMPDIR": self.scratch}
        if len(self.gpus) > 1:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[number % len(self.gpus)]
        return {number: spec | {"options": spec["options"] | {"env": environment}}}


@contextmanager
def start_processes(processes: int) -> Generator[tuple[Client, Deaths]]:
    """Start processes and connect to their scheduler, which listens on the loopback device; end them with the block.

    Args:
        processes: The number of processes.

    Raises:
        UsageError: The processes do not start.
    """
    silence()
    with TemporaryDirectory(prefix="kd-compare-") as scratch, ExitStack() as stack:
        stack.enter_context(dask.config.set(CONFIG | {"temporary-directory": scratch}))
        deaths, others = Deaths(), active_children()
        stack.callback(_forget, dict(os.environ), deaths)
        logging.getLogger(NANNIES).addHandler(deaths)
        logging.getLogger(NANNIES).setLevel(logging.INFO)
        with _without_interrupts():
            cluster = Processes(scratch, visible_gpus())
            stack.callback(cluster.close)
            client = stack.enter_context(Client(cluster, set_as_default=False))
            stack.callback(_kill, cluster, others)
        cluster.scale(processes)
        try:
            client.wait_for_workers(processes, timeout=START_SECONDS)
        except TimeoutError:
            raise UsageError(
                f"compare: {processes} processes did not start within {START_SECONDS:.0f} s: lower --processes"
            ) from None
        yield client, deaths


def visible_gpus(devices: Path = Path("/dev")) -> list[str]:
    """Name the GPUs that the processes may use, without loading torch.

    Args:
        devices: The directory of device files.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    return [str(number) for number, _ in enumerate(devices.glob("nvidia[0-9]*"))]


@contextmanager
def _without_interrupts() -> Generator[None]:
    """Let the threads that start in the block, and their processes, ignore Ctrl-C: it is for this thread alone."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # it would let Ctrl-C through in the thread that starts it
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _kill(cluster: LocalCluster, others: list[BaseProcess]) -> None:
    """End the processes and theirs, busy or not: dask would wait for their jobs, and for those that just start."""
    for nanny in list(cluster.workers.values()):
        nanny.close_gracefully()  # else it starts a new process
    for child in active_children():
        if child not in others:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(child.pid)
                for each in [process, *process.children(recursive=True)]:
                    with suppress(psutil.NoSuchProcess):
                        each.kill()


def _forget(environment: dict[str, str], deaths: Deaths) -> None:
    """Take away what was set for the time of the cluster."""
    logging.getLogger(NANNIES).removeHandler(deaths)
    for name in os.environ.keys() - environment.keys():  # dask sets variables for its processes
        del os.environ[name]
