"""A run of two processes with a fault on rank 1, or a signal to both: ``python -m ... out kind point`` on each rank."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from kd_lightning.callbacks import FaultTolerance
from tests import toys

KINDS = ("error", "death", "hang", "ctrl-c")
POINTS = ("forward", "backward", "between")
FAULT_IN = 6
"""Number of the batch, from 0: the second one of an epoch's second half."""
TIMEOUT = 4.0


class Fault(Callback):
    """Fails at a point of a batch."""

    def __init__(self, kind: str, point: str) -> None:
        self.kind, self.point = kind, point

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.trainer = trainer
        if self.point == "forward":
            pl_module.student.register_forward_pre_hook(self.reach)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        if self.point == "backward":
            loss.register_hook(self.reach)

    def on_train_batch_end(self, *_: Any) -> None:
        if self.point == "between":
            self.reach()

    def reach(self, *_: Any) -> None:
        batch = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1
        rank = self.trainer.global_rank
        if self.kind == "ctrl-c":  # a terminal sends it to all processes, wherever they are
            if batch == FAULT_IN - rank:
                os.kill(os.getpid(), signal.SIGINT)
        elif rank == 1 and batch == FAULT_IN:
            if self.kind == "error":
                raise RuntimeError("injected")
            if self.kind == "death":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)


def main(out: Path, kind: str, point: str) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tolerance = FaultTolerance(handles_sigint=True, step_timeout=TIMEOUT if kind == "hang" else 60.0)
    last = ModelCheckpoint(out, "last", save_on_exception=True, every_n_train_steps=1000)
    trainer = toys.trainer(out, tolerance, Fault(kind, point), last, **toys.strategy(learner := toys.offline(), 2))
    trainer.fit(learner, toys.data(train_size=512, batch_size=32))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
