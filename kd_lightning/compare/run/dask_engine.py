"""An engine on dask.distributed: its scheduler places the jobs on worker processes and repeats those of dead ones."""

from __future__ import annotations

import logging
import os
import pickle
import traceback
from collections.abc import Callable, Sequence
from contextlib import chdir
from importlib import import_module
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from uuid import uuid4

from distributed import Client, Future, get_worker
from distributed.worker import thread_state

from kd_lightning import __version__
from kd_lightning.compare.messages import Failed, Job, OnMessage, Outcome, Progress
from kd_lightning.compare.run.attempt import attempt_job
from kd_lightning.core.failures import one_line, shortened
from kd_lightning.core.working_directory import import_from_working_directory

_one_at_a_time = Lock()
"""A run has its process to itself: its seeds, its output and its directory are the process's."""


class AbandonedJob(BaseException):
    """Nobody waits for the result of a running job any more: its command has ended."""


class DaskEngine:
    """Runs jobs on the workers of a dask cluster.

    Args:
        client: The connection to the scheduler.
        processes: The number of jobs that run at the same time, for estimates.
        marks: A directory that all workers share, for the marks of running jobs.
        explain: Adds to a failure what this process knows of the processes that died.
    """

    def __init__(
        self, client: Client, processes: int, marks: Path, explain: Callable[[Failed], Failed] = lambda failed: failed
    ) -> None:
        self.client, self.processes, self.marks, self.explain = client, processes, marks, explain
        self.names = (f"kd-lightning-{uuid4().hex}-{number}" for number in count())

    def run(self, jobs: Sequence[Job], on_message: OnMessage) -> dict[str, Outcome]:
        """Run jobs and return their outcomes by name, as `Engine.run` does."""
        call, messages = next(self.names), SimpleQueue[tuple[str, Progress | Future]]()
        self.client.subscribe_topic(call, lambda event: messages.put((event[1][0], Progress(event[1][1]))))
        futures: dict[str, Future] = {}
        for number, job in enumerate(jobs):
            needed = [futures[name] for name in job.needs]
            place = str(self.marks.resolve()), str(Path.cwd()), call
            futures[job.name] = self.client.submit(
                run_job,
                pickle.dumps(job),
                needed,
                *place,
                key=f"{call}-{number}",
                priority=len(jobs) - number,
                pure=False,
            )
            futures[job.name].add_done_callback(lambda future, name=job.name: messages.put((name, future)))
        outcomes: dict[str, Outcome] = {}
        while len(outcomes) < len(jobs):
            name, message = messages.get()
            if isinstance(message, Future):
                message = outcomes[name] = self._outcome(message)
            elif name in outcomes:  # a message that was overtaken, or of a repetition for the sake of a later job
                continue
            on_message(name, message)
        self.client.unsubscribe_topic(call)
        return outcomes

    def _outcome(self, future: Future) -> Outcome:
        try:
            outcome: Outcome = future.result()
        except Exception as error:  # no worker could load the job, too many workers died, or the scheduler has ended
            return Failed(shortened(one_line(error)), traceback.format_exc())
        return self.explain(outcome) if isinstance(outcome, Failed) and outcome.pids else outcome


def silence() -> None:
    """Let dask print nothing: what a user needs to know is in the outcomes."""
    for name in ("distributed", "distributed.client", "tornado", "tornado.application"):
        for handler in logging.getLogger(name).handlers:
            handler.setLevel(logging.CRITICAL + 1)


def run_job(pickled: bytes, needed: list[Outcome], marks: str, folder: str, topic: str) -> Outcome:
    """Run a job in a worker, in the directory that the command was called from.

    Args:
        pickled: The job, which a worker that cannot load it must not die of.
        needed: The outcomes of the jobs that it needs, in their order.
        marks: The directory for the marks of running jobs.
        folder: The directory of the command.
        topic: The topic of the job's events.
    """
    if not Path(marks).is_dir():
        reason = f"{marks} is not there on {os.uname().nodename}: a cluster's workers need the command's file system"
        return Failed(reason, reason)
    import_from_working_directory(folder)
    job: Job = pickle.loads(pickled)
    worker, key = get_worker(), thread_state.key

    def report_progress(fraction: float) -> None:
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            raise AbandonedJob
        worker.log_event(topic, (job.name, fraction))

    with _one_at_a_time, chdir(folder):
        return attempt_job(job, dict(zip(job.needs, needed, strict=True)), Path(marks), report_progress)


def prepare(modules: Sequence[str]) -> str:
    """Import in a worker what all jobs need, which takes seconds once in a process.

    Args:
        modules: Dotted names.

    Returns:
        The version of the package.
    """
    for name in modules:
        import_module(name)
    return __version__
