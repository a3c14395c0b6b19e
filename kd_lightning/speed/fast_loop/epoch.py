"""A training epoch of Lightning's in which most steps run in the fast loop."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from typing_extensions import override

from kd_lightning.core.lightning_internals import (
    BATCHES_THAT_STEPPED,
    FIRST_ITERATION,
    ResultCollection,
    TrainingEpochLoop,
    epoch_results,
    is_restarting,
    logger_connector,
    signal_connector,
    skips_backward,
)
from kd_lightning.speed.fast_loop.cuda_graph import CUDAGraphStep
from kd_lightning.speed.fast_loop.next_step import NextStep
from kd_lightning.speed.fast_loop.results import FastResults
from kd_lightning.speed.fast_loop.step import FastStep


class FastEpoch(TrainingEpochLoop):
    """Alternates between Lightning's own steps and series of fast ones.

    Lightning's own ``advance`` and ``on_advance_end`` run where much happens around a step, and where this loop would
    have to repeat rules of Lightning's that change from release to release: the first step of an epoch or after a
    resume, the last one, and every step that validation, a checkpoint or the end of the fit follows. Between two of
    these nothing but the batch changes. So everything that a step looks up, e.g. which hooks are overridden, is
    looked up once for all of these steps, and `FastStep` does the rest with the same counters, the same hooks with
    the same arguments, the same logs, schedulers and gradients, in the same order.
    """

    graph: CUDAGraphStep | None
    """Replays the idle steps, if the user wants that."""

    @override
    def run(self, data_fetcher: Any) -> None:
        # Lightning's own `run`, with fast steps in front of each of Lightning's steps
        self.reset()
        self.on_run_start(data_fetcher)
        while not self.done:
            try:
                if not self._run_fast_steps(data_fetcher):
                    self.advance(data_fetcher)
                    self.on_advance_end(data_fetcher)
            except StopIteration:
                break
            finally:
                self.on_iteration_done()

    def _run_fast_steps(self, fetcher: Any) -> bool:
        """Run the steps up to the next one that is Lightning's own; False if there were none."""
        trainer = self.trainer
        has_started = vars(logger_connector(trainer))[FIRST_ITERATION] is not None
        if (
            not has_started
            or is_restarting(self)
            or skips_backward(self.automatic_optimization)
            or trainer.should_stop
            or fetcher.length is None
        ):
            return False
        next_step = NextStep(self)
        if next_step.needs_lightning(fetcher):
            return False
        step, signals, state = FastStep(self), signal_connector(trainer), vars(self)
        while True:
            step.run(fetcher, next_step.is_idle_step())
            if trainer.should_stop or signals.received_sigterm:
                self.on_advance_end(fetcher)  # validates, saves the loggers, or raises
                return True
            # Of `on_advance_end` this is all that is left where nothing follows the step.
            if not step.accumulates:
                state[BATCHES_THAT_STEPPED] += 1
            if next_step.needs_lightning(fetcher):
                return True


def install(trainer: Trainer, graph: CUDAGraphStep | None = None) -> None:
    """Turn a trainer's training epochs into fast ones.

    Lightning refers to its loop from several places, so the loop that is there changes its class and keeps its state.

    Args:
        trainer: One that `why_unsupported` has nothing against.
        graph: Replays the idle steps.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    loop.__class__, epoch_results(loop).__class__ = FastEpoch, FastResults
    loop.graph = graph


def uninstall(trainer: Trainer) -> None:
    """Turn the epochs into Lightning's own again, if they are fast ones."""
    loop: Any = trainer.fit_loop.epoch_loop
    if type(loop) is FastEpoch:
        loop.__class__ = TrainingEpochLoop  # pyright: ignore[reportAttributeAccessIssue]
        epoch_results(loop).__class__ = ResultCollection
        del loop.graph
