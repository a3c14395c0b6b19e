"""The engines of a comparison: this process, processes of this machine, a cluster that stands, or jobs of a queue."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, cast

from kd_lightning import __version__
from kd_lightning.cli.errors import RunStopped
from kd_lightning.compare.messages import Engine
from kd_lightning.compare.run.inline import InlineEngine
from kd_lightning.core.errors import UsageError
from kd_lightning.core.failures import one_line

if TYPE_CHECKING:
    from distributed import Client

    from kd_lightning.compare.run.dask_engine import DaskEngine

MARKS = ".attempts"
"""A directory in the root, for the marks of running jobs."""
NEEDED_BY_ALL = ("kd_lightning.compare.run.execution", "kd_lightning.compare.plan.costs")
CONNECT_SECONDS = 10


@contextmanager
def open_engine(
    processes: int, scheduler: str | None, cluster: Path | None, root: Path, say: Callable[[str], None]
) -> Generator[Engine]:
    """Start an engine, and end it with the block; what still runs then is ended or abandoned.

    Args:
        processes: The number of processes on this machine; with 0, jobs run in this one.
        scheduler: The address of a dask scheduler that stands, to use in place of own processes.
        cluster: A file that describes a cluster to start, likewise.
        root: The directory of the comparison.
        say: Called with a line for the user.

    Raises:
        UsageError: There is no scheduler at the address, the file is wrong, or workers cannot do the jobs.
        RunStopped: SIGTERM ended the block.
    """
    shutil.rmtree(marks := root / MARKS, ignore_errors=True)
    marks.mkdir(parents=True)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, marks, ignore_errors=True)
        stack.enter_context(_stopped_by_sigterm())
        if scheduler is not None:
            with _connected(scheduler, marks, say) as engine:
                yield engine
        elif cluster is not None:
            from kd_lightning.compare.run.job_queue import job_cluster

            with job_cluster(cluster, root, say) as (address, jobs), _connected(address, marks, say) as engine:
                engine.processes = jobs
                yield engine
        elif processes:
            from kd_lightning.compare.run.local_cluster import start_processes

            with start_processes(processes) as (client, deaths):
                engine = _engine(client, marks, "this machine")
                engine.explain = deaths.explain
                yield engine
        else:
            yield InlineEngine(marks)


@contextmanager
def _stopped_by_sigterm() -> Generator[None]:
    """End on SIGTERM as on Ctrl-C, with processes and temporary files; only the main thread can ask for it."""
    if current_thread() is not main_thread():
        yield
        return
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        if received:
            raise RunStopped("terminated", 143) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _connected(address: str, marks: Path, say: Callable[[str], None]) -> Generator[DaskEngine]:
    """Use the workers of a scheduler, and wait for one if there is none yet."""
    from distributed import Client

    from kd_lightning.compare.run.dask_engine import silence

    silence()
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise UsageError(
            f"compare: --scheduler {address}: no dask scheduler answers there ({one_line(error)}): "
            "start one by `dask scheduler`, and workers by `dask worker`"
        ) from error
    with client:
        if not client.nthreads():
            say(f"waiting for a worker of {address}")
            client.wait_for_workers(1)
        yield _engine(client, marks, address)


def _engine(client: Client, marks: Path, where: str) -> DaskEngine:
    from kd_lightning.compare.run.dask_engine import DaskEngine, prepare

    threads = cast("dict[str, int]", client.nthreads())
    if too_many := [worker for worker, number in threads.items() if number > 1]:
        raise UsageError(
            f"compare: the worker {too_many[0]} of {where} runs several jobs at once, and a run needs its process "
            "to itself: start it with --nthreads 1"
        )
    try:
        versions = cast("dict[str, str]", client.run(prepare, NEEDED_BY_ALL))
    except Exception as error:
        raise UsageError(
            f"compare: a worker of {where} cannot load kd_lightning ({one_line(error)}): install the package there"
        ) from error
    for worker, version in versions.items():
        if version != __version__:
            raise UsageError(
                f"compare: the worker {worker} of {where} has kd_lightning {version}, and this process {__version__}: "
                "install the same version"
            )
    return DaskEngine(client, len(versions), marks)
