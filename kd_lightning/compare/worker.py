"""A process that imports once and does one task after another on one core."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

Tell = Callable[[float], None]
"""Told how far a task is, in [0, 1]."""


class Task(Protocol):
    """What a worker does: plain values, sent to it by pickle."""

    def __call__(self, tell: Tell) -> Any:
        """Does it and returns plain values."""
        ...


class Underway(NamedTuple):
    """A task is under way."""

    fraction: float


class Done(NamedTuple):
    """A task came to its end."""

    value: Any


class Failed(NamedTuple):
    """A task raised, or its process died."""

    reason: str
    """In one line."""
    details: str
    """The traceback; of a process that died, the reason again."""


Message = Underway | Done | Failed


class Worker:
    """The parent's side of one process; it is started at once and knows nothing of the parent's state.

    On a machine of few cores two threads a process are slower than one, and by much: each worker has one.
    """

    def __init__(self) -> None:
        self._spawn()

    def _spawn(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        with _environment(OMP_NUM_THREADS="1"):
            self.process.start()
        theirs.close()  # theirs alone now, so that its death closes the pipe

    def start(self, task: Task) -> None:
        """Hands it a task; `receive` tells of it."""
        with suppress(BrokenPipeError):  # it is dead, which `receive` will say
            self.connection.send(task)

    def receive(self) -> Message:
        """Waits for the next message; the death of the process is one, and another takes its place."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            reason = f"its process died with exit code {self.process.exitcode}: was it killed for want of memory?"
            self.connection.close()
            self._spawn()
            return Failed(reason, reason)

    def stop(self) -> None:
        """Ends the process, whatever it is doing."""
        self.process.kill()
        self.process.join()
        self.connection.close()


class GetReady:
    """A task: imports what all others need."""

    def __call__(self, tell: Tell) -> None:
        """Takes seconds, once in a process."""
        import_module("kd_lightning.compare.fitting")


def _serve(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent as well, and the parent ends its workers
    import torch

    torch.set_num_threads(1)
    with suppress(EOFError, BrokenPipeError):  # the parent is gone: so is the reason to be here
        while True:
            task: Task = connection.recv()
            try:
                connection.send(Done(task(lambda fraction: connection.send(Underway(fraction)))))
            except BrokenPipeError:
                raise
            except Exception as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                connection.send(Failed(reason, traceback.format_exc()))


@contextmanager
def _environment(**variables: str) -> Generator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def output_to(path: str | os.PathLike[str]) -> Generator[None]:
    """Everything that this process prints, C++ included, goes to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {1: os.dup(1), 2: os.dup(2)}
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in kept:
        os.dup2(file, descriptor)
    os.close(file)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, copy in kept.items():
            os.dup2(copy, descriptor)
            os.close(copy)
