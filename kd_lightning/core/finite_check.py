"""The check of every optimizer step that losses and gradients are finite, and that no file gets other values."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from kd_lightning.core.distributed import world_size
from kd_lightning.core.errors import UsageError
from kd_lightning.core.finite_tensors import are_finite, first_value, is_finite, non_finite_entries, non_finite_state
from kd_lightning.core.lightning_internals import signal_connector, skip_save_on_exception
from kd_lightning.core.progress import optimizer_step
from kd_lightning.core.step_flag import StepFlag
from kd_lightning.core.terms import Terms

REMEDY = "look for non-finite inputs, a learning rate that is too high, or a temperature far below 1"
SCALED_STEPS = 30
"""Optimizer steps in a row that a gradient scaler may skip: it halves its scale of 65536 each time."""


class FiniteCheck(Callback):
    """Stop a fit at the first optimizer step whose loss or gradients are not finite, on all processes together.

    The weights of before that step stay in memory and in the files: no checkpoint is written after it, and none whose
    weights, averages, buffers or optimizer moments are not finite. Values that were not finite at the start of the fit,
    such as a causal mask, may stay so.

    A `Learner` and `Distillation` attach it themselves; `kd_lightning.callbacks.FaultTolerance` does for any module.

    Raises:
        UsageError: In a step: a loss or a gradient is not finite, with the term or the parameter, the step and the
            rank. Before a file is written and at the end of the fit: a weight, buffer or moment is not.
    """

    hooks_are_recordable = True

    def __init__(self) -> None:
        self.flag = StepFlag()
        self._terms: list[Terms] = []
        self._found: tuple[str, str] | None = None
        """What is not finite on this process in the current step, and its value."""
        self._skipped = 0
        self._has_failed = False
        self._at_start: list[str] = []
        self._strategy: Any = None

    # ---- Lightning hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look at every checkpoint before it is written, by whatever callback."""
        self.flag = StepFlag()
        self._found, self._skipped, self._has_failed, self._at_start = None, 0, False, []
        if stage == "fit" and self._strategy is None:
            self._strategy = trainer.strategy
            vars(self._strategy)["save_checkpoint"] = partial(self._save, trainer, trainer.strategy.save_checkpoint)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember what is not finite from the start; weights and terms are complete by now."""
        self._terms = [module for module in pl_module.modules() if isinstance(module, Terms)]
        self._at_start = non_finite_entries(pl_module.state_dict())

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Look at the loss of a batch, of each one where gradients are accumulated."""
        value = loss.item()
        if math.isfinite(value):
            return
        # a scaled loss in half precision may be infinite, which the scaler treats as an infinite gradient
        if math.isnan(value) or loss.dtype.itemsize > 2 or scaler_of(trainer) is None:
            self._found = self._found or self._describe_loss(value)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Look at the gradients, and stop if they or a loss are not finite on any process."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not are_finite(gradients) and self._found is None:
            self._found = self._describe_gradient(trainer, pl_module, optimizer)
        else:
            self._skipped = 0
        if self.flag.exchange(self._found is not None, pl_module.device):
            self._stop(trainer, f"at step {optimizer_step(trainer)}")
        if self.flag.stop_signal:
            signal_connector(trainer).received_sigterm = True

    def after_replay(self, trainer: Trainer) -> None:
        """Look at the flag of a replayed step."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the weights, buffers and moments after the last step."""
        state = {"state_dict": pl_module.state_dict(), "optimizer_states": [o.state_dict() for o in trainer.optimizers]}
        self._check_state(trainer, state)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the trainer as it was."""
        if self._strategy is not None:
            del vars(self._strategy)["save_checkpoint"]
            self._strategy, self._terms = None, []
        _set_callbacks(trainer, [each for each in _callbacks(trainer) if each is not self])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write no file of a failed fit whose weights are not finite."""
        if self._strategy is not None and non_finite_entries(pl_module.state_dict(), self._at_start):
            self._block_files(trainer)

    # ---- inside

    def _save(self, trainer: Trainer, save: Callable[..., None], checkpoint: dict[str, Any], *args: Any, **kw: Any):
        if self._has_failed:
            return
        if trainer.interrupted:  # in the handling of another error, which must not be replaced, on this process alone
            if non_finite_state(checkpoint, self._at_start):
                rank_zero_warn(f"{args[0] if args else 'a checkpoint'} is not written: its weights are not finite")
                return
        else:
            self._check_state(trainer, checkpoint)
        save(checkpoint, *args, **kw)

    def _check_state(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        names = non_finite_state(checkpoint, self._at_start)
        if names:
            self._found = f"{names[0]!r} of the weights and optimizer moments", f"{len(names)} tensors"
        if self.flag.exchange(bool(names), trainer.strategy.root_device):
            self._stop(trainer, f"after {optimizer_step(trainer)} steps")

    def _describe_loss(self, value: float) -> tuple[str, str]:
        losses = {name: loss for terms in self._terms for name, loss in terms.last.items()}
        weights = {name: term.weight for terms in self._terms for name, term in terms.all().items()}
        named = next((name for name in losses if weights[name] and not is_finite(losses[name])), None)
        values = ", ".join(f"{name}={loss.item():g}" for name, loss in losses.items())
        return "the training loss" if named is None else f"the loss of term {named!r}", values or f"{value:g}"

    def _describe_gradient(
        self, trainer: Trainer, module: LightningModule, optimizer: Optimizer
    ) -> tuple[str, str] | None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        bad = next((parameter for parameter in parameters if not is_finite(parameter.grad)), None)
        if bad is None:
            return None
        self._skipped += 1
        skipped = ""
        if scaler_of(trainer) is not None:  # which skips the step and lowers its scale
            if self._skipped < SCALED_STEPS:
                return None
            skipped = f", as in {self._skipped} steps in a row, whatever their scale"
        name = next((name for name, parameter in module.named_parameters() if parameter is bad), "a parameter")
        return f"the gradient of {name!r}", f"{first_value(bad.grad):g}{skipped}"

    def _stop(self, trainer: Trainer, when: str) -> NoReturn:
        """Raise the error of the first process that has one, on every process."""
        self._block_files(trainer)
        found, where = self._found, ""
        if world_size() > 1:
            of_all: list[Any] = [None] * world_size()
            dist.all_gather_object(of_all, self._found)
            number = next(i for i, each in enumerate(of_all) if each is not None)
            found, where = of_all[number], f" on rank {number}"
        subject, value = found or ("a value", "unknown")
        raise UsageError(f"{subject} is not finite {when}{where} ({value}): {REMEDY}")

    def _block_files(self, trainer: Trainer) -> None:
        self._has_failed = True
        for callback in _callbacks(trainer):
            if isinstance(callback, ModelCheckpoint):
                skip_save_on_exception(callback, trainer)


def attach_finite_check(trainer: Trainer, module: LightningModule) -> FiniteCheck:
    """Add a `FiniteCheck` to a trainer's callbacks for the length of a fit, and return it; or the one that is there.

    Args:
        trainer: In the `setup` of a fit.
        module: The module to train.
    """
    callbacks = _callbacks(trainer)
    found = next((each for each in callbacks if isinstance(each, FiniteCheck)), None)
    if found is None:
        found = FiniteCheck()
        _set_callbacks(trainer, [found, *callbacks])  # another list: Lightning iterates over this one
        found.setup(trainer, module, "fit")
    return found


def scaler_of(trainer: Trainer) -> Any:
    """Give the gradient scaler of a trainer's precision; None if it has none."""
    return getattr(trainer.precision_plugin, "scaler", None)


def _callbacks(trainer: Trainer) -> list[Callback]:
    return trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]


def _set_callbacks(trainer: Trainer, callbacks: list[Callback]) -> None:
    trainer.callbacks = callbacks  # pyright: ignore[reportAttributeAccessIssue]
