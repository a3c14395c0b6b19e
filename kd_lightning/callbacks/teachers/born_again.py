"""Born-again networks: each generation of the student learns from the previous one."""

from __future__ import annotations

import os
from copy import deepcopy
from hashlib import blake2b
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from kd_lightning.callbacks.teachers.evolving import EvolvingTeacher
from kd_lightning.core.errors import UsageError
from kd_lightning.core.progress import epoch
from kd_lightning.core.torch_internals import reset_of


class BornAgain(EvolvingTeacher):
    """At the first batch of each generation, copy the student into the teacher and reinitialize the student.

    theta_k = argmin L(f(x, theta_k-1), f(x, theta_k)), from new random weights

    Tommaso Furlanello, Zachary C. Lipton, Michael Tschannen, Laurent Itti, Anima Anandkumar: Born-Again Neural
    Networks. ICML, 2018 (arXiv:1805.04770). Everything that learns is initialised again, connectors in terms included.
    The optimizer and the learning-rate schedulers are reset to their states before the first step. The new weights
    depend on (seed, generation) alone, and are the same on all ranks.

    The first generation has no teacher and learns from labels alone; the others learn from the teacher's outputs at
    temperature 1, with labels (BAN+L) or without (BAN), by two `TermWeightSchedule`. For the paper's ensemble, which
    averages the predictions of the generations, keep each of them:
    ``ModelCheckpoint(every_n_epochs=epochs_per_generation, save_top_k=-1, save_on_train_epoch_end=True)``, and
    `load_student` each.

    Args:
        epochs_per_generation: The epochs of a generation; the number of generations follows from the trainer's
            ``max_epochs``.
        seed: The seed of the new weights; that of ``seed_everything`` by default, and 0 if that was not called. A
            resumed run keeps the seed in its checkpoint.
        teacher: The dotted name of the teacher in the LightningModule.
        student: The dotted name of the network that it copies.

    Raises:
        UsageError: `epochs_per_generation` is below 1; at the start of the fit, as for `EvolvingTeacher`, or the last
            generation would be incomplete, or a module with parameters has no ``reset_parameters()``.

    Example:
        >>> from kd_lightning.callbacks import PiecewiseConstant, TermWeightSchedule
        >>> generations = BornAgain(epochs_per_generation=5)
        >>> teacher_after_labels = [
        ...     TermWeightSchedule("task", PiecewiseConstant({0: 1.0, 5: 0.0}), unit="epoch"),
        ...     TermWeightSchedule("kd", PiecewiseConstant({0: 0.0, 5: 1.0}), unit="epoch"),
        ... ]
    """

    def __init__(
        self,
        epochs_per_generation: int,
        seed: int | None = None,
        teacher: str = "teacher",
        student: str = "student",
    ) -> None:
        if epochs_per_generation < 1:
            raise UsageError(f"epochs_per_generation={epochs_per_generation} must be at least 1")
        super().__init__(teacher, student)
        self.epochs_per_generation = epochs_per_generation
        self.seed = seed
        self._seed = seed or 0
        self._optimizers: list[dict[str, Any]] = []
        self._schedulers: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the state with the seed and the states of optimizers and schedulers before the first step."""
        return super().state_dict() | {
            "seed": self._seed,
            "optimizers": self._optimizers,
            "schedulers": self._schedulers,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state, the seed included."""
        super().load_state_dict(state_dict)
        self._seed = state_dict["seed"]
        self._optimizers = state_dict["optimizers"]
        self._schedulers = state_dict["schedulers"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the seed, and check that generations are complete and every layer can be reinitialized."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed
        epochs = trainer.max_epochs or 0
        if epochs > self.epochs_per_generation and epochs % self.epochs_per_generation:
            raise UsageError(
                f"max_epochs={epochs} ends within a generation: make it a multiple of "
                f"epochs_per_generation={self.epochs_per_generation}"
            )
        for name, module in pl_module.named_modules():
            if _learns(module) and reset_of(module) is None:
                raise UsageError(
                    f"{name!r} cannot be reinitialized: give its class {type(module).__name__}, which has "
                    "parameters, a method reset_parameters()"
                )

    def period(self, trainer: Trainer) -> int:
        """Return the number of the generation."""
        return epoch(trainer) // self.epochs_per_generation

    def update_teacher(self, trainer: Trainer, pl_module: LightningModule, period: int) -> None:
        """Copy the student, reinitialize it and reset the optimizers; at the start of the fit, store their states."""
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        if self._period is None:
            self._optimizers = [deepcopy(optimizer.state_dict()) for optimizer in trainer.optimizers]
            self._schedulers = [deepcopy(scheduler.state_dict()) for scheduler in schedulers]
            return
        self.copy_student()
        reinitialize(pl_module, int.from_bytes(blake2b(f"{self._seed} {period}".encode(), digest_size=8).digest()))
        for optimizer, state in zip(trainer.optimizers, self._optimizers, strict=True):
            optimizer.load_state_dict(deepcopy(state))
        for scheduler, state in zip(schedulers, self._schedulers, strict=True):
            scheduler.load_state_dict(deepcopy(state))


@torch.no_grad()
def reinitialize(module: LightningModule, seed: int) -> None:
    """Initialise everything that learns in a module with new weights, without changing the random generators.

    The ``reset_parameters()`` of each layer is called, the innermost first, so that a network with its own
    initialisation can define it in such a method as well. Frozen networks keep their weights.

    Args:
        module: The module, changed in place.
        seed: The seed of the new weights.
    """
    device = module.device
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
        torch.manual_seed(seed)
        module.apply(_reset)


def _reset(module: nn.Module) -> None:
    reset = reset_of(module)
    if reset is not None and (_learns(module) or not list(module.parameters(recurse=False))):
        reset()


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))
