"""Actions at a chosen moment: of training, of the writing of a checkpoint, or at any call of a function."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from torch import nn

from kd_lightning.core import files

Action = Callable[[], object]

BATCH = 5
"""The batch of most faults: the second one of the second epoch."""
HALF = 3000
"""Bytes of a checkpoint that are written before a fault in the midst of it."""


def kill(number: int = signal.SIGKILL) -> Action:
    """Send a signal to this process."""
    return lambda: os.kill(os.getpid(), number)


def fail(error: BaseException) -> Action:
    """Raise an error."""

    def action() -> None:
        raise error

    return action


def disk_full() -> None:
    """Raise the system's error of a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def hang() -> None:
    """Wait for ten minutes."""
    time.sleep(600)


def marked(marker: Path, action: Action) -> Action:
    """Write a marker before an action: a fault that never happened proves nothing."""

    def both() -> None:
        marker.touch()
        action()

    return both


class Moment(Callback):
    """Does something once in training, in the batch of a number, counted from 0 over all epochs.

    Args:
        point: ``batch start``, ``forward``, ``before step``, ``after step``, ``batch end``, ``epoch end``; or
            ``validation``, in the first one after that batch.
        batch: The number of the batch.
        action: Done at that moment.
        student: The network a layer of which is called at ``forward``.
    """

    def __init__(self, point: str, batch: int, action: Action, student: nn.Module) -> None:
        self.point, self.batch, self.action, self.student = point, batch, action, student
        self.is_done = False

    def _reach(self, *_: Any) -> None:
        ready = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1
        is_later = self.point in ("validation", "epoch end") and ready > self.batch
        if not self.is_done and (ready == self.batch or is_later) and not self.trainer.sanity_checking:
            self.is_done = True
            self.action()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach to the run, which is complete by now."""
        self.trainer = trainer
        if self.point == "forward":
            for each in self.student.modules():
                each.register_forward_hook(lambda *_: self._reach() if trainer.training else None)
        for optimizer in trainer.optimizers:
            if self.point == "before step":
                optimizer.register_step_pre_hook(self._reach)
            if self.point == "after step":
                optimizer.register_step_post_hook(self._reach)

    def on_train_batch_start(self, *_: Any) -> None:
        """Reach the start of a batch."""
        if self.point == "batch start":
            self._reach()

    def on_train_batch_end(self, *_: Any) -> None:
        """Reach the end of a batch."""
        if self.point == "batch end":
            self._reach()

    def on_validation_batch_start(self, *_: Any) -> None:
        """Reach a batch of a validation."""
        if self.point == "validation":
            self._reach()

    def on_train_epoch_end(self, *_: Any) -> None:
        """Reach the end of an epoch."""
        if self.point == "epoch end":
            self._reach()


class AtCall(Callback):
    """Does something at the call or return of a function of this number, counted from the start of training.

    Args:
        number: The number; 0 only counts.
        action: Done at that moment.
    """

    def __init__(self, number: int = 0, action: Action = lambda: None) -> None:
        self.number, self.action = number, action
        self.count = 0

    def on_train_start(self, *_: Any) -> None:
        """Begin to count."""
        sys.setprofile(self._count)

    def on_train_end(self, *_: Any) -> None:
        """Stop counting."""
        sys.setprofile(None)

    def _count(self, *_: Any) -> None:
        self.count += 1
        if self.count == self.number:
            sys.setprofile(None)
            self.action()


class Pause(Callback):
    """Waits in a batch until a file is there.

    Args:
        batch: Number of the batch.
        waits: Written when the wait begins.
        until: The file.
    """

    def __init__(self, batch: int, waits: Path, until: Path) -> None:
        self.batch, self.waits, self.until = batch, waits, until

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        """Wait in the batch."""
        if trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1 == self.batch:
            self.waits.touch()
            while not self.until.exists():
                time.sleep(0.01)


def at(point: str, action: Action) -> Callable[[Any, Any], None]:
    """Do something in the batch `BATCH` of a run, or in the validation after it; see `Moment`."""

    def attach(run: Any, truth: Any) -> None:
        where = point if run.family.validates or point != "validation" else "epoch end"
        run.add(Moment(where, BATCH, marked(run.marker, action), run.student))

    return attach


def in_a_save(stage: str, number: int, action: Action, stays: bool = False, suffix: str = ".ckpt") -> None:
    """Do something while this process writes a checkpoint, or another file.

    Args:
        stage: ``before`` the first byte, in the ``middle`` of them, before the ``rename``, or ``after`` it.
        number: The number of the file, from 1, among those of its suffix.
        action: Done at that moment.
        stays: It is done in all later ones as well.
        suffix: The end of the file's name.
    """
    begin, commit = files.AtomicFile.__init__, files.AtomicFile.commit
    count = [0]

    def faulty_begin(file: Any, directory: Path, name: str, *rest: str) -> None:
        count[0] += name.endswith(suffix)
        file.is_chosen = name.endswith(suffix) and (count[0] == number or (stays and count[0] > number))
        if file.is_chosen and stage == "before":
            action()
        begin(file, directory, name, *rest)
        if file.is_chosen and stage == "middle":
            file.stream = _Torn(file.stream, action)

    def faulty_commit(file: Any, path: Path) -> None:
        if file.is_chosen and stage == "rename":
            file.stream.flush()
            os.fsync(file.stream.fileno())
            action()
        commit(file, path)
        if file.is_chosen and stage == "after":
            action()

    changed: Any = files.AtomicFile
    changed.__init__, changed.commit = faulty_begin, faulty_commit


class _Torn:
    """A file in whose midst something happens."""

    def __init__(self, stream: Any, action: Action) -> None:
        self._stream, self._action, self._left = stream, action, HALF

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        if len(view) > self._left:
            self._stream.write(view[: self._left])
            self._stream.flush()
            self._left = 1 << 60
            self._action()
            return len(view)
        self._left -= len(view)
        return self._stream.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
