"""Lightning's training epoch, with little around the steps at which nothing is due.

This leans on parts of Lightning that are private. `refusal` says whether a trainer is one of those for which it is
known what those parts do; `kd_lightning.callbacks.LeanLoop` asks it.
"""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import lightning
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    DeviceStatsMonitor,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
    TQDMProgressBar,
)
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult, _AutomaticOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import DoublePrecision, MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection, _ResultMetric
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from typing_extensions import override

from kd_lightning.callbacks.step_graph import StepGraph
from kd_lightning.core.errors import UsageError
from kd_lightning.core.traits import is_idle_hook

TESTED = ("2.6.6",)
"""The versions of Lightning with which this was found equal to Lightning's own loop."""

REPLACED = ("optimizer_step", "backward", "optimizer_zero_grad", "configure_gradient_clipping", "lr_scheduler_step")
"""Hooks of a LightningModule whose default is written out here: one that is overridden is not understood."""
TRANSFER = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
AT_LOGS = (LearningRateMonitor, DeviceStatsMonitor)
"""Callbacks whose hooks around a batch do something at the steps that are logged alone."""
BARS = (RichProgressBar, TQDMProgressBar)


class LeanEpoch(_TrainingEpochLoop):
    """Runs most steps by itself, and those at whose end much happens as Lightning does.

    Those are the first of an epoch or after a resume, the last, and every one that is followed by validation or by a
    checkpoint. Of the others, at most steps no logger and no bar looks at what was logged. Counters, hooks and their
    arguments, logs, schedulers and gradients are those of Lightning's own step, in its order.
    """

    graph: StepGraph | None
    """Replays those steps at which nobody looks, if that was asked for."""

    @override
    def run(self, data_fetcher: Any) -> None:
        self.reset()
        self.on_run_start(data_fetcher)
        while not self.done:
            try:
                if not self._lean_steps(data_fetcher):
                    self.advance(data_fetcher)
                    self.on_advance_end(data_fetcher)
            except StopIteration:
                break
            finally:
                self.on_iteration_done()

    def _lean_steps(self, fetcher: Any) -> bool:
        """Runs the steps up to the next that is Lightning's; whether there were any."""
        trainer = self.trainer
        started = trainer._logger_connector._first_loop_iter is not None
        resumes = self._restarting or self._skip_next_val
        averages = self.automatic_optimization._skip_backward  # and has no use for gradients
        if not started or resumes or averages or trainer.should_stop or fetcher.length is None:
            return False
        due = _Due(self)
        if due.much(fetcher):
            return False
        step = _Step(self)
        while True:
            step.run(fetcher, quiet=not due.a_look())
            if trainer.should_stop or trainer._signal_connector.received_sigterm:
                self.on_advance_end(fetcher)
                return True
            if not step.accumulates:
                self._batches_that_stepped += 1
            if due.much(fetcher):
                return True


class _Due:
    """What happens at the end of the next step, from what does not change before the next validation."""

    def __init__(self, loop: LeanEpoch) -> None:
        trainer = loop.trainer
        self.loop, self.trainer = loop, trainer
        self.current, self.total = loop.batch_progress.current, loop.batch_progress.total
        self.steps = loop.automatic_optimization.optim_progress.optimizer.step.total
        self.batches = trainer.num_training_batches
        self.log_every = cast("int", trainer.log_every_n_steps)
        validates = loop._should_check_val_epoch() and trainer.val_check_batch != float("inf")
        self.val_every = cast("int", trainer.val_check_batch) if validates else 0
        self.val_over_epochs = trainer.check_val_every_n_epoch is None
        self.callbacks = len(trainer.callbacks)
        self.save_every = [
            callback._every_n_train_steps
            for callback in trainer.callbacks
            if isinstance(callback, ModelCheckpoint) and callback._every_n_train_steps > 0
        ]
        bar: Any = next((bar for bar in trainer.callbacks if _is_bar(bar)), None)
        self.refresh_every = bar.refresh_rate if bar is not None and bar.is_enabled else 0

    def much(self, fetcher: Any) -> bool:
        """Whether the step is to be Lightning's."""
        batch = self.current.ready + 1
        if (
            batch >= self.batches
            or fetcher.fetched + 1 >= fetcher.length
            or len(self.trainer.callbacks) != self.callbacks
        ):
            return True
        if self.val_every and (self.total.ready + 1 if self.val_over_epochs else batch) % self.val_every == 0:
            return True
        step = self.steps.completed + 1
        if step == self.loop.max_steps:
            return True
        return bool(self.save_every) and any(step % every == 0 for every in self.save_every)

    def a_look(self) -> bool:
        """Whether a logger or a bar looks at what was logged."""
        if self.log_every and (self.loop._batches_that_stepped + 1) % self.log_every == 0:
            return True
        return bool(self.refresh_every) and (self.current.ready + 1) % self.refresh_every == 0


class _Hook(NamedTuple):
    """A hook that is overridden, bound, and the callback whose it is: none for the module's."""

    call: Callable[..., Any]
    owner: Callback | None


class _Step:
    """One step of automatic optimization, with everything looked up that does not change before the next validation."""

    def __init__(self, loop: LeanEpoch) -> None:
        trainer = loop.trainer
        self.loop, self.trainer = loop, trainer
        self.module = trainer.lightning_module
        self.state = self.module.__dict__  # to set the name of the hook in: nn.Module's own way takes three calls
        self.connector = trainer._logger_connector
        self.results = cast("_Results", loop._results)
        self.strategy, self.precision = trainer.strategy, trainer.precision_plugin
        self.device = self.strategy.root_device
        self.optimizer = trainer.optimizers[0]
        self.progress = loop.automatic_optimization.optim_progress.optimizer
        self.total, self.current = loop.batch_progress.total, loop.batch_progress.current
        self.several = trainer.world_size > 1
        self.plain = type(self.precision) is Precision and not self.several
        converts = type(self.precision) is DoublePrecision
        self.transfers = converts or _overrides(self.module, TRANSFER) or _overrides(trainer.datamodule, TRANSFER)
        self.takes_index = is_param_in_hook_signature(self.module.training_step, "batch_idx", min_args=2)
        self.schedulers = [config for config in trainer.lr_scheduler_configs if config.interval == "step"]
        self.batch_start = self._hooks("on_train_batch_start")
        self.batch_end = self._hooks("on_train_batch_end")
        self.quiet_start = [hook for hook in self.batch_start if not _acts_when_due(hook.owner)]
        self.quiet_end = [hook for hook in self.batch_end if not _acts_when_due(hook.owner)]
        self.before_zero_grad = self._hooks("on_before_zero_grad")
        self.before_backward = self._hooks("on_before_backward")
        self.after_backward = self._hooks("on_after_backward")
        self.before_optimizer_step = self._hooks("on_before_optimizer_step")
        self.accumulates = False
        self.batch: Any = None
        self.batch_idx = 0
        self.result = ClosureResult(None)

    def run(self, fetcher: Any, quiet: bool) -> None:
        """Does what Lightning's ``advance`` does; when it is quiet, nobody looks at what is logged."""
        loop, total, current = self.loop, self.total, self.current
        if self.several:
            loop._broadcast_sigterm_tensor()
        try:
            batch = next(fetcher.iterator)[0]
        except StopIteration:
            fetcher.done = True
            raise
        fetcher.fetched += 1
        loop.batch_progress.is_last_batch = False
        self.batch = batch = batch if self._is_there(batch) else self._moved(batch)
        self.batch_idx = batch_idx = current.ready
        total.ready += 1
        current.ready += 1
        self.connector._first_loop_iter = False
        results = self.results
        results.batch, results.batch_size, results.dataloader_idx, results.noticed = batch, None, None, False
        self.accumulates = current.ready % self.trainer.accumulate_grad_batches != 0

        hooks = self.quiet_start if quiet else self.batch_start
        before = "on_train_batch_start"
        if batch is None or (hooks and self._call(hooks, before, batch, batch_idx) == -1):
            self._skip(batch)
            if batch is not None:
                raise StopIteration
        else:
            total.started += 1
            current.started += 1
            self._optimize(quiet)
            total.processed += 1
            current.processed += 1
            if self.schedulers and not self.accumulates:
                self._move_schedulers()
        if hooks := self.quiet_end if quiet else self.batch_end:
            outputs = None if batch is None else {} if self.result.loss is None else self.result.asdict()
            self._call(hooks, "on_train_batch_end", outputs, batch, batch_idx)
        quiet = quiet and not self.trainer.should_stop
        if quiet and not results.noticed:
            results.batch = results.batch_size = None
        else:  # a callback may ask for what is logged at a step that no logger keeps
            self.connector.on_batch_end()
        total.completed += 1
        current.completed += 1
        if not quiet:
            self.connector.update_train_step_metrics()

    # ---- hooks

    def _hooks(self, name: str) -> list[_Hook]:
        """Those that are overridden, in their order."""
        found: list[_Hook] = []
        for callback in self.trainer.callbacks:
            if is_idle_hook(callback, name):
                continue
            if getattr(type(callback), name) is not getattr(Callback, name) or name in vars(callback):
                found.append(_Hook(getattr(callback, name), callback))
        if _overrides(self.module, (name,)):
            found.append(_Hook(getattr(self.module, name), None))
        return found

    def _call(self, hooks: list[_Hook], name: str, *args: Any) -> Any:
        """Calls them in turn; what the module's own gave."""
        answer, state = None, self.state
        before, state["_current_fx_name"] = state["_current_fx_name"], name
        for hook, owner in hooks:
            if owner is None:
                answer = hook(*args)
            else:
                hook(self.trainer, self.module, *args)
        state["_current_fx_name"] = before
        return answer

    # ---- the batch

    def _is_there(self, batch: Any) -> bool:
        """Whether a batch needs no transfer: tensors of the module's device, and no hook that would see them."""
        if self.transfers or type(batch) not in (tuple, list):
            return False
        for part in batch:
            if type(part) is not Tensor or part.device != self.device:
                break
        else:
            return True
        return False

    def _moved(self, batch: Any) -> Any:
        batch = self.precision.convert_input(batch)
        batch = self.module._on_before_batch_transfer(batch, dataloader_idx=0)
        before, self.state["_current_fx_name"] = self.state["_current_fx_name"], "batch_to_device"
        batch = self.strategy.batch_to_device(batch, dataloader_idx=0)
        self.state["_current_fx_name"] = before
        return batch

    def _skip(self, batch: Any) -> None:
        """A loader gave nothing, or the module's hook ends the epoch."""
        self.result = ClosureResult(None)
        if batch is None:
            text = "train_dataloader yielded None. If this was on purpose, ignore this warning..."
            self.loop._warning_cache.warn(text)
        else:
            self.loop.batch_progress.increment_by(0, is_last_batch=True)
        self.loop.batch_progress.increment_processed()
        self.loop.update_lr_schedulers("step", update_plateau_schedulers=False)
        if self.loop._num_ready_batches_reached():
            self.loop.update_lr_schedulers("epoch", update_plateau_schedulers=False)

    # ---- the optimization

    def _optimize(self, quiet: bool) -> None:
        if quiet and self.loop.graph is not None and self._replayed(self.loop.graph):
            return
        if self.accumulates:
            with cast("DDPStrategy", self.strategy).block_backward_sync() if self.several else nullcontext():
                self._forward_backward()
            return
        step = self.progress.step
        step.total.ready += 1
        step.current.ready += 1
        self.optimizer.step(closure=self._closure)  # pyright: ignore[reportCallIssue, reportArgumentType]
        step.total.completed += 1
        step.current.completed += 1

    def _replayed(self, graph: StepGraph) -> bool:
        if self.trainer.accumulate_grad_batches != 1:  # a callback has changed it since the fit began
            return False
        loss = graph.replay(self.batch, self.optimizer, self._recorded)
        if loss is None:
            return False
        for counted in (self.progress.zero_grad, self.progress.step):
            for counts in (counted.total, counted.current):
                counts.ready += 1
                counts.completed += 1
        self.progress.zero_grad.total.started += 1
        self.progress.zero_grad.current.started += 1
        self.result = ClosureResult(loss if self.quiet_end else None)
        self.result.closure_loss = None
        return True

    def _recorded(self, batch: Any) -> Tensor:
        """What is recorded of a step."""
        noticed = self.results.noticed
        with torch.enable_grad():
            before, self.state["_current_fx_name"] = self.state["_current_fx_name"], "training_step"
            arguments = (batch, self.batch_idx) if self.takes_index else (batch,)
            try:
                output = self.strategy.training_step(*arguments)
            finally:
                self.state["_current_fx_name"] = before
            if not isinstance(output, Tensor) or self.results.noticed != noticed:
                raise UsageError("training_step logs at a step that is not logged, or gives more than a loss")
            self.optimizer.zero_grad()
            output.backward()
        if self.trainer.gradient_clip_val:
            self._clip(self.trainer.gradient_clip_val)
        self.optimizer.step()
        return output.detach()

    def _closure(self) -> Tensor | None:
        loss = self._forward_backward()
        if self.before_optimizer_step:
            self._call(self.before_optimizer_step, "on_before_optimizer_step", self.optimizer)
        if self.trainer.gradient_clip_val:
            self._clip(self.trainer.gradient_clip_val)
        return loss

    def _clip(self, clip: float) -> None:
        algorithm = self.trainer.gradient_clip_algorithm
        if type(self.precision) is MixedPrecision or algorithm not in (None, GradClipAlgorithmType.NORM) or clip < 0:
            self.precision.clip_gradients(self.optimizer, clip, algorithm or GradClipAlgorithmType.NORM)
            return
        clip_grad_norm_([weight for group in self.optimizer.param_groups for weight in group["params"]], clip)

    def _forward_backward(self) -> Tensor | None:
        if not torch.is_grad_enabled():
            with torch.enable_grad():
                return self._forward_backward()
        state = self.state
        before, state["_current_fx_name"] = state["_current_fx_name"], "training_step"
        arguments = (self.batch, self.batch_idx) if self.takes_index else (self.batch,)
        output = self.module.training_step(*arguments) if self.plain else self.strategy.training_step(*arguments)
        state["_current_fx_name"] = before
        number = self.trainer.accumulate_grad_batches
        if number == 1 and type(output) is Tensor:
            self.result = result = ClosureResult(output)  # Lightning divides by the number even when it is one
        else:
            if output is None and self.several:
                raise UsageError("training_step gave None, which one process of several must not: return a loss")
            self.result = result = ClosureResult.from_training_step_output(output, number)
        loss = result.closure_loss
        if loss is None:
            text = "`training_step` returned `None`. If this was on purpose, ignore this warning..."
            Closure.warning_cache.warn(text)
        if self.batch_idx % number == 0:
            self._zero_grad()
        if loss is not None:
            if self.before_backward:
                self._call(self.before_backward, "on_before_backward", loss)
            loss.backward()
            if self.after_backward:
                self._call(self.after_backward, "on_after_backward")
        result.closure_loss = None  # the graph is not needed any more
        return result.loss

    def _zero_grad(self) -> None:
        counted = self.progress.zero_grad
        counted.total.ready += 1
        counted.current.ready += 1
        if self.before_zero_grad:
            self._call(self.before_zero_grad, "on_before_zero_grad", self.optimizer)
        counted.total.started += 1
        counted.current.started += 1
        self.optimizer.zero_grad()
        counted.total.completed += 1
        counted.current.completed += 1

    def _move_schedulers(self) -> None:
        for config in self.schedulers:
            if self.current.ready % config.frequency == 0:
                progress, scheduler = self.loop.scheduler_progress, config.scheduler
                progress.total.ready += 1
                progress.current.ready += 1
                scheduler.step()  # pyright: ignore[reportCallIssue]
                progress.total.completed += 1
                progress.current.completed += 1


class _Results(_ResultCollection):
    """Notices that something is logged, and keeps it where it is."""

    noticed = False

    @override
    def log(self, *args: Any, **kwargs: Any) -> None:
        self.noticed = True
        super().log(*args, **kwargs)

    @override
    def __setitem__(self, key: str, metric: _ResultMetric) -> None:
        metric.__class__ = _Metric
        super().__setitem__(key, metric)


class _Metric(_ResultMetric):
    """Does not look through everything that it has for tensors to move when it is where it is to be."""

    @override
    def to(self, *args: Any, **kwargs: Any) -> _ResultMetric:
        value: Any = vars(self).get("value")
        if kwargs or args != (getattr(value, "device", None),):
            return super().to(*args, **kwargs)
        return self


def refusal(trainer: Trainer) -> str | None:
    """Why a trainer's steps must all be Lightning's own, or nothing."""
    module = trainer.lightning_module
    loop: Any = trainer.fit_loop.epoch_loop
    precision, strategy = trainer.precision_plugin, trainer.strategy
    plain_step = type(loop.automatic_optimization) is _AutomaticOptimization
    if lightning.__version__ not in TESTED:
        return f"lightning {lightning.__version__} is not one it was tested with ({', '.join(TESTED)})"
    if not module.automatic_optimization or len(trainer.optimizers) != 1:
        return f"{type(module).__name__} optimizes by hand, or with several optimizers"
    if overridden := _overrides(module, REPLACED):
        return f"{type(module).__name__} has a {overridden} of its own"
    if type(strategy) not in (SingleDeviceStrategy, DDPStrategy) or getattr(strategy, "_model_averager", None):
        return f"the strategy is {type(strategy).__name__}"
    if type(precision) not in (Precision, DoublePrecision, MixedPrecision) or getattr(precision, "scaler", None):
        return f"the precision is {precision.precision}, by {type(precision).__name__}"
    if type(trainer.profiler) is not PassThroughProfiler:
        return f"{type(trainer.profiler).__name__} wants to see every part of a step"
    if type(trainer.fit_loop._data_fetcher) is not _PrefetchDataFetcher or trainer.num_training_batches == float("inf"):
        return "how many batches an epoch has is not known"
    if type(loop) not in (_TrainingEpochLoop, LeanEpoch) or not plain_step:
        return f"the loop is {type(loop).__name__}"
    if any(config.reduce_on_plateau and config.interval == "step" for config in trainer.lr_scheduler_configs):
        return "a scheduler looks at a metric at each step"
    if trainer._val_check_time_interval is not None:
        return "validation is due by the clock"
    if trainer.fast_dev_run:
        return "fast_dev_run logs every step"
    return None


def lean(trainer: Trainer, graph: StepGraph | None = None) -> None:
    """Makes the trainer's epochs lean ones, with steps that are replayed if there is something to do it."""
    loop: Any = trainer.fit_loop.epoch_loop
    loop.__class__, loop._results.__class__ = LeanEpoch, _Results
    loop.graph = graph


def stock(trainer: Trainer) -> None:
    """Makes them Lightning's own again."""
    loop: Any = trainer.fit_loop.epoch_loop
    if type(loop) is LeanEpoch:
        loop.__class__, loop._results.__class__ = _TrainingEpochLoop, _ResultCollection
        del loop.graph


def _overrides(of: Any, names: tuple[str, ...]) -> str:
    """The first of these hooks that is not Lightning's default."""
    if of is None:
        return ""
    base = LightningModule if isinstance(of, LightningModule) else LightningDataModule
    for name in names:
        if getattr(type(of), name) is not getattr(base, name) or name in vars(of):
            return name
    return ""


def _is_bar(callback: Any) -> bool:
    return isinstance(callback, BARS) and type(callback).on_train_batch_end in [bar.on_train_batch_end for bar in BARS]


def _acts_when_due(callback: Callback | None) -> bool:
    """Whether its hooks around a batch do nothing at a quiet step."""
    if isinstance(callback, ModelCheckpoint):
        own = type(callback).on_train_batch_end is not ModelCheckpoint.on_train_batch_end
        return not own and callback._train_time_interval is None
    return type(callback) in AT_LOGS or _is_bar(callback)
