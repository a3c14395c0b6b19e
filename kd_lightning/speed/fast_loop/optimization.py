"""Forward, backward, clipping, the optimizer's step and the schedulers' of one training step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from kd_lightning.core.errors import UsageError
from kd_lightning.core.lightning_internals import CURRENT_HOOK, Closure, ClosureResult, epoch_results
from kd_lightning.core.traits import has_trait
from kd_lightning.speed.fast_loop.cuda_graph import CUDAGraphStep
from kd_lightning.speed.fast_loop.hooks import HookCaller
from kd_lightning.speed.fast_loop.results import FastResults


class Optimization:
    """Automatic optimization with one optimizer, as Lightning's hooks do it by default.

    The hooks that may have been overridden are called; those whose default is written out here are
    `kd_lightning.speed.fast_loop.support.REPLACED_HOOKS`.

    Args:
        loop: The training epoch loop, a `FastEpoch`.
        call_hooks: Calls hooks of this trainer.
        keeps_loss: A hook after an idle step reads its loss.
    """

    def __init__(self, loop: Any, call_hooks: HookCaller, keeps_loss: bool) -> None:
        trainer = loop.trainer
        self.trainer, self.module, self.call_hooks = trainer, trainer.lightning_module, call_hooks
        self.module_state = call_hooks.module_state
        self.strategy, self.precision = trainer.strategy, trainer.precision_plugin
        self.is_distributed = trainer.world_size > 1
        self.needs_strategy = type(self.precision) is not Precision or self.is_distributed
        self.optimizer = trainer.optimizers[0]
        self.results = cast("FastResults", epoch_results(loop))
        self.graph = cast("CUDAGraphStep | None", loop.graph)
        self.keeps_loss = keeps_loss
        self.progress = loop.automatic_optimization.optim_progress.optimizer
        self.current = loop.batch_progress.current
        self.takes_index = is_param_in_hook_signature(self.module.training_step, "batch_idx", min_args=2)
        self.scheduler_progress = loop.scheduler_progress
        self.schedulers = [config for config in trainer.lr_scheduler_configs if config.interval == "step"]
        self.before_zero_grad = call_hooks.find("on_before_zero_grad")
        self.before_backward = call_hooks.find("on_before_backward")
        self.after_backward = call_hooks.find("on_after_backward")
        self.before_optimizer_step = call_hooks.find("on_before_optimizer_step")
        recorded = [callback for callback in trainer.callbacks if has_trait(callback, "hooks_are_recordable")]
        self.after_replay: list[Callable[[Any], None]] = [callback.after_replay for callback in recorded]
        self.batch: Any = None
        self.batch_idx = 0
        self.result = ClosureResult(None)

    def run(self, batch: Any, batch_idx: int, accumulates: bool, is_idle: bool) -> None:
        """Train on one batch; `result` has its loss then.

        Args:
            batch: On the module's device.
            batch_idx: Its number in the epoch.
            accumulates: Only add to the gradients: further batches belong to this optimizer step.
            is_idle: Nobody uses the step's values, so that a recorded step may be replayed.
        """
        self.batch, self.batch_idx = batch, batch_idx
        if is_idle and self.graph is not None and self._replay(self.graph):
            return
        if accumulates:
            with self.strategy.block_backward_sync() if self.is_distributed else nullcontext():
                self._forward_backward()
            return
        step = self.progress.step
        step.total.ready += 1
        step.current.ready += 1
        # torch's own step: Lightning wraps the optimizer, and calls the module's and the strategy's optimizer_step
        self.optimizer.step(closure=self._closure)
        step.total.completed += 1
        step.current.completed += 1

    def step_schedulers(self) -> None:
        """Move the learning-rate schedulers that count steps."""
        for config in self.schedulers:
            if self.current.ready % config.frequency == 0:
                progress, scheduler = self.scheduler_progress, config.scheduler
                progress.total.ready += 1
                progress.current.ready += 1
                scheduler.step()
                progress.total.completed += 1
                progress.current.completed += 1

    # ---- a step in eager mode

    def _closure(self) -> Tensor | None:
        loss = self._forward_backward()
        if self.before_optimizer_step:
            self.call_hooks(self.before_optimizer_step, "on_before_optimizer_step", self.optimizer)
        if self.trainer.gradient_clip_val:
            self._clip(self.trainer.gradient_clip_val)
        return loss

    def _forward_backward(self) -> Tensor | None:
        if not torch.is_grad_enabled():  # inside of some optimizers' step
            with torch.enable_grad():
                return self._forward_backward()
        state = self.module_state
        before, state[CURRENT_HOOK] = state[CURRENT_HOOK], "training_step"
        arguments = (self.batch, self.batch_idx) if self.takes_index else (self.batch,)
        # the strategy adds autocast and DistributedDataParallel's forward, where there is either
        training_step = self.strategy.training_step if self.needs_strategy else self.module.training_step
        output = training_step(*arguments)
        state[CURRENT_HOOK] = before
        number = self.trainer.accumulate_grad_batches
        if number == 1 and type(output) is Tensor:
            self.result = result = ClosureResult(output)  # Lightning divides by the number even when it is one
        else:
            if output is None and self.is_distributed:
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
                self.call_hooks(self.before_backward, "on_before_backward", loss)
            loss.backward()
            if self.after_backward:
                self.call_hooks(self.after_backward, "on_after_backward")
        result.closure_loss = None  # frees the autograd graph
        return result.loss

    def _zero_grad(self) -> None:
        counted = self.progress.zero_grad
        counted.total.ready += 1
        counted.current.ready += 1
        if self.before_zero_grad:
            self.call_hooks(self.before_zero_grad, "on_before_zero_grad", self.optimizer)
        counted.total.started += 1
        counted.current.started += 1
        self.optimizer.zero_grad()
        counted.total.completed += 1
        counted.current.completed += 1

    def _clip(self, clip: float) -> None:
        algorithm = self.trainer.gradient_clip_algorithm
        if type(self.precision) is MixedPrecision or algorithm not in (None, GradClipAlgorithmType.NORM) or clip < 0:
            self.precision.clip_gradients(self.optimizer, clip, algorithm or GradClipAlgorithmType.NORM)
            return
        clip_grad_norm_([weight for group in self.optimizer.param_groups for weight in group["params"]], clip)

    # ---- a step as a CUDA graph

    def _replay(self, graph: CUDAGraphStep) -> bool:
        """Replay the recorded step on this batch, and count it; False if it has to run in eager mode."""
        if self.trainer.accumulate_grad_batches != 1:  # a callback has changed it since the fit began
            return False
        loss = graph.replay(self.batch, self.optimizer, self._whole_step)
        if loss is None:
            return False
        for counted in (self.progress.zero_grad, self.progress.step):
            for counts in (counted.total, counted.current):
                counts.ready += 1
                counts.completed += 1
        self.progress.zero_grad.total.started += 1
        self.progress.zero_grad.current.started += 1
        self.result = ClosureResult(loss if self.keeps_loss else None)
        self.result.closure_loss = None
        for hook in self.after_replay:
            hook(self.trainer)
        return True

    def _whole_step(self, batch: Any) -> Tensor:
        """Run a step from the forward pass to the optimizer's, to record it with the hooks that are recordable."""
        has_logged = self.results.has_logged
        with torch.enable_grad():
            before, self.module_state[CURRENT_HOOK] = self.module_state[CURRENT_HOOK], "training_step"
            arguments = (batch, self.batch_idx) if self.takes_index else (batch,)
            try:
                output = self.strategy.training_step(*arguments)
            finally:
                self.module_state[CURRENT_HOOK] = before
            if not isinstance(output, Tensor) or self.results.has_logged != has_logged:
                raise UsageError("training_step logs at a step that is not logged, or returns more than a loss")
            self.optimizer.zero_grad()
            self.call_hooks(self.before_backward, "on_before_backward", output)
            output.backward()
        self.call_hooks(self.before_optimizer_step, "on_before_optimizer_step", self.optimizer)
        if self.trainer.gradient_clip_val:
            self._clip(self.trainer.gradient_clip_val)
        self.optimizer.step()
        return output.detach()
