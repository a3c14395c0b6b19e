"""One training step, with everything looked up beforehand that does not change before the next validation."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch.plugins.precision import DoublePrecision
from torch import Tensor

from kd_lightning.core.lightning_internals import (
    CURRENT_HOOK,
    FIRST_ITERATION,
    ClosureResult,
    before_batch_transfer,
    broadcast_sigterm,
    epoch_results,
    logger_connector,
    num_ready_batches_reached,
    warn_once,
)
from kd_lightning.speed.fast_loop.hooks import HookCaller, needs_idle_steps, overridden
from kd_lightning.speed.fast_loop.optimization import Optimization
from kd_lightning.speed.fast_loop.results import FastResults

TRANSFER = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class FastStep:
    """Does what Lightning's ``advance`` does in a step that neither validation nor a checkpoint follows.

    Lightning looks up each hook by its name, profiles it, and calls it even where nobody overrides it. Here the
    overridden hooks are found once, and a batch that is on the device already is not searched for tensors to move.
    An idle step in addition leaves out the hooks that do nothing in it and, unless something was logged, does not
    collect its values for loggers, bars and callbacks.

    Args:
        loop: The training epoch loop, a `FastEpoch`.
    """

    def __init__(self, loop: Any) -> None:
        trainer = loop.trainer
        self.loop, self.trainer = loop, trainer
        self.module = trainer.lightning_module
        self.strategy, self.precision = trainer.strategy, trainer.precision_plugin
        self.device = self.strategy.root_device
        self.connector = logger_connector(trainer)
        self.connector_state = vars(self.connector)
        self.results = cast("FastResults", epoch_results(loop))
        self.progress = loop.batch_progress
        self.total, self.current = loop.batch_progress.total, loop.batch_progress.current
        self.before_transfer = before_batch_transfer(self.module)
        self.broadcast_sigterm = broadcast_sigterm(loop) if trainer.world_size > 1 else None
        converts = type(self.precision) is DoublePrecision
        self.must_transfer = converts or overridden(self.module, TRANSFER) or overridden(trainer.datamodule, TRANSFER)
        self.call_hooks = HookCaller(trainer)
        self.start_hooks = self.call_hooks.find("on_train_batch_start")
        self.end_hooks = self.call_hooks.find("on_train_batch_end")
        self.idle_start_hooks = [hook for hook in self.start_hooks if needs_idle_steps(hook)]
        self.idle_end_hooks = [hook for hook in self.end_hooks if needs_idle_steps(hook)]
        self.optimization = Optimization(loop, self.call_hooks, keeps_loss=bool(self.idle_end_hooks))
        self.accumulates = False

    def run(self, fetcher: Any, is_idle: bool) -> None:
        """Run the next step.

        Args:
            fetcher: Lightning's data fetcher.
            is_idle: No logger, bar, validation or checkpoint uses the values of this step.
        """
        total, current, optimization = self.total, self.current, self.optimization
        if self.broadcast_sigterm is not None:
            self.broadcast_sigterm()
        # the fetcher's own `__next__`, without the profiler around it; a loader of known length is not prefetched
        try:
            batch = next(fetcher.iterator)[0]
        except StopIteration:
            fetcher.done = True
            raise
        fetcher.fetched += 1
        self.progress.is_last_batch = False
        batch = batch if self._is_on_device(batch) else self._transferred(batch)
        batch_idx = current.ready
        total.ready += 1
        current.ready += 1
        self.connector_state[FIRST_ITERATION] = False
        results = self.results
        results.batch, results.batch_size, results.dataloader_idx, results.has_logged = batch, None, None, False
        self.accumulates = accumulates = current.ready % self.trainer.accumulate_grad_batches != 0

        hooks = self.idle_start_hooks if is_idle else self.start_hooks
        if batch is None or (hooks and self.call_hooks(hooks, "on_train_batch_start", batch, batch_idx) == -1):
            self._skip(batch)
            if batch is not None:
                raise StopIteration
        else:
            total.started += 1
            current.started += 1
            optimization.run(batch, batch_idx, accumulates, is_idle)
            total.processed += 1
            current.processed += 1
            if optimization.schedulers and not accumulates:
                optimization.step_schedulers()

        if hooks := self.idle_end_hooks if is_idle else self.end_hooks:
            result = optimization.result
            outputs = None if batch is None else {} if result.loss is None else result.asdict()
            self.call_hooks(hooks, "on_train_batch_end", outputs, batch, batch_idx)
        is_idle = is_idle and not self.trainer.should_stop
        if is_idle and not results.has_logged:
            results.batch = results.batch_size = None
        else:  # a callback may read `trainer.callback_metrics` in a step that no logger keeps
            self.connector.on_batch_end()
        total.completed += 1
        current.completed += 1
        if not is_idle:
            self.connector.update_train_step_metrics()

    def _is_on_device(self, batch: Any) -> bool:
        """Tell if a batch needs no transfer: tensors on the module's device, and no hook that would change them."""
        if self.must_transfer or type(batch) not in (tuple, list):
            return False
        for part in batch:
            if type(part) is not Tensor or part.device != self.device:
                break
        else:
            return True
        return False

    def _transferred(self, batch: Any) -> Any:
        """Convert and move a batch, with the hooks for that."""
        state = self.call_hooks.module_state
        batch = self.precision.convert_input(batch)
        batch = self.before_transfer(batch, dataloader_idx=0)
        before, state[CURRENT_HOOK] = state[CURRENT_HOOK], "batch_to_device"
        batch = self.strategy.batch_to_device(batch, dataloader_idx=0)
        state[CURRENT_HOOK] = before
        return batch

    def _skip(self, batch: Any) -> None:
        """Count a step without optimization: the loader gave None, or the module's hook ends the epoch by -1."""
        self.optimization.result = ClosureResult(None)
        if batch is None:
            warn_once(self.loop, "train_dataloader yielded None. If this was on purpose, ignore this warning...")
        else:
            self.progress.increment_by(0, is_last_batch=True)
        self.progress.increment_processed()
        self.loop.update_lr_schedulers("step", update_plateau_schedulers=False)
        if num_ready_batches_reached(self.loop):
            self.loop.update_lr_schedulers("epoch", update_plateau_schedulers=False)
