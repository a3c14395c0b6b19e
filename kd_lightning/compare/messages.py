"""The jobs of a comparison, and the messages about them, as an engine and its caller exchange them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

ReportProgress = Callable[[float], None]
"""A function that takes the finished share of a task, in [0, 1]."""


class Task(Protocol):
    """A picklable callable that a worker runs; it returns plain values."""

    def __call__(self, report_progress: ReportProgress) -> Any:
        """Run the task and return plain values."""
        ...


class Progress(NamedTuple):
    """A task is running; the first message about each attempt has the fraction 0."""

    fraction: float


class Done(NamedTuple):
    """A task has returned."""

    value: Any


class Failed(NamedTuple):
    """A task has raised an error, or its process has died too often."""

    reason: str
    """One line."""
    details: str
    """The traceback; the last line of the log if the processes died."""
    pids: tuple[int, ...] = ()
    """The processes that died while they ran the task."""


Outcome = Done | Failed
Message = Progress | Outcome
OnMessage = Callable[[str, Message], None]
"""A function that takes the name of a job and a message about it."""


@dataclass(frozen=True)
class Job:
    """A task with a name, and the jobs that must be done first.

    Args:
        name: Its name, which no other job of the same call has.
        task: The task.
        needs: Names of the jobs that it needs, each with its part in this one for the message, such as ``its teacher``.
        log: The file that the task's output goes to; its last line is shown if the task's process dies.
    """

    name: str
    task: Task
    needs: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None


class Engine(Protocol):
    """Runs jobs: in this process, in others of this machine, or on a cluster."""

    processes: int
    """The number of jobs that run at the same time."""

    def run(self, jobs: Sequence[Job], on_message: OnMessage) -> dict[str, Outcome]:
        """Run jobs and return their outcomes by name; a job whose need has failed is not run, and the others are.

        Args:
            jobs: The most urgent ones first, and each behind those that it needs.
            on_message: Called in this thread with each message.
        """
        ...
