"""A worker: a process that imports once and runs one task after another on one core."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection

from kd_lightning.compare.messages import Done, Failed, Message, Progress, ReportProgress, Task


class Worker:
    """The parent's side of one process, which starts at once with no state of the parent.

    On a machine of few cores two threads a process are much slower than one: each worker has one.
    """

    def __init__(self) -> None:
        self._spawn()

    def _spawn(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        with _environment(OMP_NUM_THREADS="1"):
            self.process.start()
        theirs.close()  # the process has the only other end now, so that its death closes the pipe

    def start(self, task: Task) -> None:
        """Send the process a task; `receive` returns the messages about it."""
        with suppress(BrokenPipeError):  # the process is dead, which `receive` will report
            self.connection.send(task)

    def receive(self) -> Message:
        """Wait for the next message; a process that dies is reported as a failure and replaced."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            reason = f"its process died with exit code {self.process.exitcode}: check if the machine ran out of memory"
            self.connection.close()
            self._spawn()
            return Failed(reason, reason)

    def result(self) -> Done | Failed:
        """Wait for the last message about a task."""
        while isinstance(message := self.receive(), Progress):
            pass
        return message

    def stop(self) -> None:
        """End the process, even in the middle of a task."""
        self.process.kill()
        self.process.join()
        self.connection.close()


@dataclass(frozen=True)
class WarmUp:
    """A task that imports the modules that all other tasks need, which takes seconds, once in a process.

    Args:
        modules: Dotted names.
    """

    modules: tuple[str, ...]

    def __call__(self, report_progress: ReportProgress) -> None:
        """Import the modules."""
        for name in self.modules:
            import_module(name)


def _serve(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent as well, and the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    with suppress(EOFError, BrokenPipeError):  # the parent has ended, so this process ends too
        while True:
            task: Task = connection.recv()
            try:
                connection.send(Done(task(lambda fraction: connection.send(Progress(fraction)))))
            except BrokenPipeError:
                raise
            except Exception as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                connection.send(Failed(reason, traceback.format_exc()))


def _end_with_parent() -> None:
    """End this process as soon as its parent has ended, even by SIGKILL in the middle of a task."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


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
    """Append everything that this process prints, C++ code included, to a file."""
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
