"""Values that are not finite in one batch of a run: an input, output, gradient or weight; and a rate of 1e30."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from benchmarks.faults.moments import Action

PLACES = ("input", "output of the other network", "gradient", "weight", "learning rate")


class Poison(Callback):
    """Puts a value that is not finite into a run, in the batch of a number, counted from 0 over all epochs.

    Args:
        place: One of `PLACES`, or ``weight after the step``.
        batch: The number of the batch.
        student: The network that learns.
        other: The network whose outputs it learns from.
        mark: Called when the value is there.
    """

    def __init__(self, place: str, batch: int, student: nn.Module, other: nn.Module, mark: Action) -> None:
        self.place, self.batch, self.student, self.other, self.mark = place, batch, student, other, mark
        self.is_armed = False

    def on_train_start(self, *_: Any) -> None:
        """Attach to the run, which is complete by now."""
        if self.place == "input":
            for each in self.student.modules():  # the first that is called with tensors
                each.register_forward_pre_hook(lambda _, args: self._spoil(args, torch.nan))
        elif self.place == "output of the other network":
            self.other.register_forward_hook(lambda _, __, output: self._spoil(output, torch.inf))
        elif self.place == "gradient":
            next(self.student.parameters()).register_hook(lambda gradient: self._spoil(gradient, torch.nan))

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        """Spoil weights or rates, or a value that the batch computes."""
        self.is_armed = trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1 == self.batch
        if self.is_armed and self.place == "weight":
            self._spoil_weight()
        if self.is_armed and self.place == "weight after the step":
            for optimizer in trainer.optimizers:
                optimizer.register_step_post_hook(self._spoil_weight)
        if self.is_armed and self.place == "learning rate":
            self.mark()
            for optimizer in trainer.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = 1e30

    def _spoil_weight(self, *_: Any) -> None:
        self.mark()
        next(self.student.parameters()).data.view(-1)[0] = torch.nan

    def _spoil(self, value: Any, bad: float) -> Any:
        if not self.is_armed:
            return value

        def spoiled(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            self.mark()
            self.is_armed = False
            return torch.cat([torch.full_like(tensor.reshape(-1)[:1], bad), tensor.reshape(-1)[1:]]).view_as(tensor)

        return tree_map_only(Tensor, spoiled, value)
