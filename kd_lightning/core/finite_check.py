"""The check of every optimizer step that losses and gradients are finite, and that no file gets other values."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from kd_lightning.core.attached import attach, callbacks_of, detach, find_attached
from kd_lightning.core.device_record import TOTAL, DeviceRecord, Finding, describe_losses
from kd_lightning.core.distributed import world_size
from kd_lightning.core.errors import NonFiniteError
from kd_lightning.core.finite_tensors import are_finite, first_value, is_finite, non_finite_entries, non_finite_state
from kd_lightning.core.lightning_internals import signal_connector, skip_save_on_exception
from kd_lightning.core.local_gradients import LocalGradients
from kd_lightning.core.progress import optimizer_step
from kd_lightning.core.step_flag import StepFlag
from kd_lightning.core.terms import Terms
from kd_lightning.core.unused_parameters import warn_of_unused

REMEDY = "look for non-finite inputs, a learning rate that is too high, or a temperature far below 1"
SCALED_STEPS = 30
"""Optimizer steps in a row that a gradient scaler may skip: it halves its scale of 65536 each time."""


class FiniteCheck(Callback):
    """Stop a fit at the first optimizer step whose loss or gradients are not finite, on all processes together.

    On a CPU the step does not happen, and the weights of before stay in memory. On a GPU no step waits for the answer:
    the fit stops as soon as it is there, and it is awaited before any file is written. No checkpoint is written after
    such a step, and none whose weights, averages, buffers or optimizer moments are not finite. What was not finite at
    the start of the fit, such as a causal mask, may stay so.

    A `Learner` and `Distillation` attach it themselves; `kd_lightning.callbacks.FaultTolerance` does for any module.

    Raises:
        NonFiniteError: In a step: a loss or a gradient is not finite, with the term or the parameter, the step and the
            rank. Before a file is written and at the end of the fit: a weight, buffer or moment is not.
    """

    hooks_are_recordable = True

    def __init__(self) -> None:
        self.flag = StepFlag()
        self._terms: list[Terms] = []
        self._found: Finding | None = None
        """A value of the current step that is not finite on this process."""
        self._skipped = 0
        self._has_failed = False
        self._at_start: list[str] = []
        self._strategy: Any = None
        self._record: DeviceRecord | None = None
        self._local: LocalGradients | None = None
        self._names: dict[Tensor, str] = {}
        self._begun: set[Optimizer] = set()
        """The optimizers that have made a step."""

    # ---- Lightning hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check every checkpoint before it is written, by whatever callback."""
        self.flag = StepFlag()
        self._found, self._skipped, self._has_failed, self._at_start = None, 0, False, []
        self._record = self._local = None
        if stage == "fit" and self._strategy is None:
            self._strategy = trainer.strategy
            vars(self._strategy)["save_checkpoint"] = partial(self._save, trainer, trainer.strategy.save_checkpoint)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the values that are not finite from the start; weights and terms are complete by now."""
        self._terms = [module for module in pl_module.modules() if isinstance(module, Terms)]
        self._at_start = non_finite_entries(pl_module.state_dict())
        self._names = {parameter: name for name, parameter in pl_module.named_parameters()}
        if not answers_at_once(pl_module.device):
            self._record = DeviceRecord(pl_module.device, SCALED_STEPS if scaler_of(trainer) else 0)
        if world_size() > 1:
            self._local = LocalGradients(pl_module)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Check the loss of a batch, of each one where gradients are accumulated."""
        if self._record is None:
            value = loss.item()
            if not math.isfinite(value) and (math.isnan(value) or not is_scaled_half(trainer, loss)):
                self._found = self._found or self._describe_loss(trainer, value)
            return
        losses, value = self._record.losses, loss.detach()
        if is_scaled_half(trainer, loss):
            value = value.nan_to_num(nan=math.nan, posinf=0.0, neginf=0.0)
        losses[TOTAL] = losses[TOTAL] + value if TOTAL in losses else value  # of accumulated batches
        losses |= self._weighted_losses()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Check the gradients, and stop if they or a loss are not finite on any process."""
        if optimizer not in self._begun:
            self._begun.add(optimizer)
            if self._terms:
                warn_of_unused(optimizer, pl_module)
        norms = [] if self._local is None else self._local.take()
        if self._record is not None:
            self._look_later(trainer, self._record, optimizer, norms)
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if are_finite(gradients):
            self._skipped = 0
        elif self._found is None:
            self._found = self._describe_gradient(trainer, optimizer, not norms or not are_finite(norms))
        if self.flag.exchange(self._found is not None, pl_module.device):
            self._stop(trainer, "at")
        if self.flag.stop_signal:
            signal_connector(trainer).received_sigterm = True

    def after_replay(self, trainer: Trainer) -> None:
        """Check the flag of earlier steps, after one was replayed as a CUDA graph."""
        if self._record is not None:
            self._read(trainer, self._record)
            self._record.send(self.flag.requested_signal)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the weights, buffers and moments after the last step."""
        state = {"state_dict": pl_module.state_dict(), "optimizer_states": [o.state_dict() for o in trainer.optimizers]}
        self._check_state(trainer, state)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the trainer to its former state."""
        if self._strategy is not None:
            del vars(self._strategy)["save_checkpoint"]
        if self._local is not None:
            self._local.remove()
        self._strategy = self._record = self._local = None
        self._terms, self._names, self._begun = [], {}, set()
        detach(trainer, self)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write no file of a failed fit whose weights or outputs are not finite."""
        if self._strategy is None:
            return
        if isinstance(exception, NonFiniteError) or non_finite_entries(pl_module.state_dict(), self._at_start):
            self._block_files(trainer)

    # ---- inside

    def _look_later(self, trainer: Trainer, record: DeviceRecord, optimizer: Optimizer, norms: list[Tensor]) -> None:
        """Launch the check of this step, and read that of an earlier one."""
        is_recorded = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        if not is_recorded:
            self._read(trainer, record)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = {self._names.get(p, f"parameter {i}"): p.grad for i, p in enumerate(parameters)}
        record.look(optimizer, gradients, norms, None if is_recorded else optimizer_step(trainer))
        if not is_recorded:
            record.send(self.flag.requested_signal)

    def _read(self, trainer: Trainer, record: DeviceRecord) -> None:
        is_bad, signal = record.received()
        if is_bad:
            self._found = record.finding()
            self._stop(trainer, "at")
        if signal or (world_size() == 1 and self.flag.requested_signal):
            self.flag.stop_signal = signal or self.flag.requested_signal
            signal_connector(trainer).received_sigterm = True

    def _save(
        self, trainer: Trainer, save: Callable[..., None], checkpoint: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        if self._has_failed:
            return
        if trainer.interrupted:  # in the handling of another error, which must not be replaced, on this process alone
            if non_finite_state(checkpoint, self._at_start):
                rank_zero_warn(f"{args[0] if args else 'a checkpoint'} is not written: its weights are not finite")
                return
        else:
            self._check_state(trainer, checkpoint)
        save(checkpoint, *args, **kwargs)

    def _check_state(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        """Stop if an earlier step was not finite, or a checkpoint is not; collective."""
        when = "at"
        if self._record is not None:
            self._found = self._record.finding()
        if self._found is None and (names := non_finite_state(checkpoint, self._at_start)):
            when, subject = "after", f"{names[0]!r} of the weights and optimizer moments"
            self._found = Finding(subject, f"{len(names)} tensors", optimizer_step(trainer))
        if self.flag.exchange(self._found is not None, trainer.strategy.root_device):
            self._stop(trainer, when)

    def _weighted_losses(self) -> dict[str, Tensor]:
        """Give the losses of the last batch by the names of their terms; those of weight 0 may be anything."""
        return {
            name: terms.last[name]
            for terms in self._terms
            for name, term in terms.all().items()
            if term.weight and name in terms.last
        }

    def _describe_loss(self, trainer: Trainer, value: float) -> Finding:
        losses = {name: loss.item() for name, loss in self._weighted_losses().items()}
        subject, values = describe_losses(losses, value) or ("the training loss", f"{value:g}")
        return Finding(subject, values, optimizer_step(trainer))

    def _describe_gradient(self, trainer: Trainer, optimizer: Optimizer, is_local: bool) -> Finding | None:
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
        subject = f"the gradient of {self._names.get(bad, 'a parameter')!r}"
        return Finding(subject, f"{first_value(bad.grad):g}{skipped}", optimizer_step(trainer), is_local)

    def _stop(self, trainer: Trainer, when: str) -> NoReturn:
        """Raise the error of the first process that has one, on every process."""
        self._block_files(trainer)
        found, where = self._found, ""
        if world_size() > 1:
            of_all: list[Any] = [None] * world_size()
            dist.all_gather_object(of_all, self._found)
            known = [(i, each) for i, each in enumerate(of_all) if each is not None]
            number, found = next((pair for pair in known if pair[1].is_local), known[0])
            where = f" on rank {number}" if found.is_local else ""
        assert found is not None
        raise NonFiniteError(f"{found.subject} is not finite {when} step {found.step}{where} ({found.value}): {REMEDY}")

    def _block_files(self, trainer: Trainer) -> None:
        self._has_failed = True
        for callback in callbacks_of(trainer):
            if isinstance(callback, ModelCheckpoint):
                skip_save_on_exception(callback, trainer)


def attach_finite_check(trainer: Trainer, module: LightningModule) -> FiniteCheck:
    """Add a `FiniteCheck` to a trainer's callbacks for the length of a fit, and return it; or the one that is there.

    Args:
        trainer: In the `setup` of a fit.
        module: The module to train.
    """
    found = find_attached(trainer, FiniteCheck)
    if found is None:
        found = FiniteCheck()
        attach(trainer, found)
        found.setup(trainer, module, "fit")
    return found


def scaler_of(trainer: Trainer) -> Any:
    """Give the gradient scaler of a trainer's precision; None if it has none."""
    return getattr(trainer.precision_plugin, "scaler", None)


def answers_at_once(device: torch.device) -> bool:
    """Tell if a value on a device can be read without waiting for kernels."""
    return device.type == "cpu"


def is_scaled_half(trainer: Trainer, loss: Tensor) -> bool:
    """Tell if a loss is scaled in half precision: the scaler treats an infinite one as an infinite gradient."""
    return loss.dtype.itemsize < 4 and scaler_of(trainer) is not None
