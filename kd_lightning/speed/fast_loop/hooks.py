"""Hooks around a step: those that are overridden, and those that do nothing in most steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    DeviceStatsMonitor,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
    TQDMProgressBar,
)

from kd_lightning.core.checkpoint_monitors import CheckpointMonitors
from kd_lightning.core.lightning_internals import CURRENT_HOOK, saves_by_time
from kd_lightning.core.training_means import TrainingMeans
from kd_lightning.core.traits import is_idle_hook

IDLE_BETWEEN = (LearningRateMonitor, DeviceStatsMonitor, CheckpointMonitors)
"""Callbacks whose hooks around a batch do something only in the steps that are logged, or that a checkpoint follows."""
PROGRESS_BARS = (RichProgressBar, TQDMProgressBar)


class Hook(NamedTuple):
    """A bound hook that is overridden, and its callback; the LightningModule's own hooks have none."""

    call: Callable[..., Any]
    owner: Callback | None


class HookCaller:
    """Calls hooks as Lightning does, with the name of the hook in the module while it runs.

    Args:
        trainer: The trainer, whose callbacks and module do not change before the next validation.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.module = trainer.lightning_module
        self.module_state = vars(self.module)  # nn.Module's __setattr__ and __getattr__ take three Python calls

    def find(self, name: str) -> list[Hook]:
        """List the overridden hooks of this name in Lightning's order, the module's last; idle ones are left out."""
        found: list[Hook] = []
        callbacks: list[Callback] = self.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        for callback in callbacks:
            if is_idle_hook(callback, name):
                continue
            if getattr(type(callback), name) is not getattr(Callback, name) or name in vars(callback):
                found.append(Hook(getattr(callback, name), callback))
        if overridden(self.module, (name,)):
            found.append(Hook(getattr(self.module, name), None))
        return found

    def __call__(self, hooks: list[Hook], name: str, *args: Any) -> Any:
        """Call the hooks in turn and return the result of the module's own."""
        answer, state = None, self.module_state
        before, state[CURRENT_HOOK] = state[CURRENT_HOOK], name
        for hook, owner in hooks:
            if owner is None:
                answer = hook(*args)
            else:
                hook(self.trainer, self.module, *args)
        state[CURRENT_HOOK] = before
        return answer


def overridden(owner: Any, names: tuple[str, ...]) -> str:
    """Find the first of these hooks that is not Lightning's default, of a module, a data module or None."""
    if owner is None:
        return ""
    base = LightningModule if isinstance(owner, LightningModule) else LightningDataModule
    for name in names:
        if getattr(type(owner), name) is not getattr(base, name) or name in vars(owner):
            return name
    return ""


def is_progress_bar(callback: Any) -> bool:
    """Tell if a callback is one of Lightning's bars and draws when Lightning's own hook does."""
    known = [bar.on_train_batch_end for bar in PROGRESS_BARS]
    return isinstance(callback, PROGRESS_BARS) and type(callback).on_train_batch_end in known


def needs_idle_steps(hook: Hook) -> bool:
    """Tell if a hook around a batch has to be called in an idle step.

    A checkpoint, a bar and a monitor do nothing there: `NextStep` calls no step idle that one of them acts in.
    """
    callback = hook.owner
    if isinstance(callback, ModelCheckpoint):
        overrides = type(callback).on_train_batch_end is not ModelCheckpoint.on_train_batch_end
        return overrides or saves_by_time(callback)
    if isinstance(callback, TrainingMeans):
        return callback.is_read_every_step
    return type(callback) not in IDLE_BETWEEN and not is_progress_bar(callback)
