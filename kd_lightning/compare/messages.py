"""The messages that a worker process and its parent exchange, and the types of both sides."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

ReportProgress = Callable[[float], None]
"""A function that takes the finished share of a task, in [0, 1]."""


class Task(Protocol):
    """A picklable callable that a worker runs; it returns plain values."""

    def __call__(self, report_progress: ReportProgress) -> Any:
        """Run the task and return plain values."""
        ...


class Progress(NamedTuple):
    """A task is still running."""

    fraction: float


class Done(NamedTuple):
    """A task has returned."""

    value: Any


class Failed(NamedTuple):
    """A task has raised an error, or its process has died."""

    reason: str
    """One line."""
    details: str
    """The traceback; the reason again if the process died."""


Message = Progress | Done | Failed


class TaskRunner(Protocol):
    """The parent's side of a worker, as the schedule uses it."""

    connection: Connection

    def start(self, task: Any) -> None:
        """Send a task to the worker."""
        ...

    def receive(self) -> Message:
        """Wait for the worker's next message."""
        ...
