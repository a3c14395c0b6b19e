"""Born-again networks: each generation is taught by the one before."""

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
    """At the first batch of each generation the teacher becomes the student, and the student is born again.

    theta_k = argmin L(f(x, theta_k-1), f(x, theta_k)), from a new random start

    Tommaso Furlanello, Zachary C. Lipton, Michael Tschannen, Laurent Itti, Anima Anandkumar: Born-Again Neural
    Networks. ICML, 2018 (arXiv:1805.04770). Everything that learns is initialised again, connectors in terms included;
    the optimizer forgets what it has gathered, and it and the learning-rate schedulers go back to where they were
    before the first step. What is new is a function of (seed, generation), the same on all ranks.

    The first generation has no teacher and learns from labels alone, the others from the teacher's outputs at
    temperature 1, with labels (BAN+L) or without (BAN): two `TermWeightSchedule`. For the paper's ensemble, which
    averages what the generations say, keep each one:
    ``ModelCheckpoint(every_n_epochs=epochs, save_top_k=-1, save_on_train_epoch_end=True)``, and `load_student` each.

    Args:
        epochs: How long a generation is trained; the trainer's ``max_epochs`` says how many there are.
        seed: Where the seeds of the generations begin; that of ``seed_everything`` if not given, and 0 if that was not
            called. A run that is resumed goes on with the seed in its checkpoint.
        teacher: The dotted name of the teacher in the LightningModule.
        student: The dotted name of the network that it copies.

    Raises:
        UsageError: `epochs` is below 1; at the start of the fit, as for `EvolvingTeacher`, or the last generation would
            be cut short, or something that learns has no ``reset_parameters()``.

    Example:
        >>> from kd_lightning.callbacks import PiecewiseConstant, TermWeightSchedule
        >>> generations = BornAgain(epochs=5)
        >>> teacher_after_labels = [
        ...     TermWeightSchedule("task", PiecewiseConstant({0: 1.0, 5: 0.0}), unit="epoch"),
        ...     TermWeightSchedule("kd", PiecewiseConstant({0: 0.0, 5: 1.0}), unit="epoch"),
        ... ]
    """

    def __init__(
        self, epochs: int, seed: int | None = None, teacher: str = "teacher", student: str = "student"
    ) -> None:
        if epochs < 1:
            raise UsageError(f"epochs={epochs} of a generation must be at least 1")
        super().__init__(teacher, student)
        self.epochs = epochs
        self.seed = seed
        self._seed = seed or 0
        self._optimizers: list[dict[str, Any]] = []
        self._schedulers: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """Adds the seed, and how optimizers and schedulers were before the first step."""
        return super().state_dict() | {
            "seed": self._seed,
            "optimizers": self._optimizers,
            "schedulers": self._schedulers,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with these."""
        super().load_state_dict(state_dict)
        self._seed = state_dict["seed"]
        self._optimizers = state_dict["optimizers"]
        self._schedulers = state_dict["schedulers"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Chooses the seed, and refuses what could not be born again."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed
        epochs = trainer.max_epochs or 0
        if epochs > self.epochs and epochs % self.epochs:
            raise UsageError(
                f"max_epochs={epochs} would end in the middle of a generation of {self.epochs}: make it a multiple"
            )
        for name, module in pl_module.named_modules():
            if _learns(module) and reset_of(module) is None:
                raise UsageError(
                    f"{name!r} has parameters of its own and cannot be born again: "
                    f"give {type(module).__name__} a reset_parameters()"
                )

    def moment(self, trainer: Trainer) -> int:
        """The generation."""
        return epoch(trainer) // self.epochs

    def move(self, trainer: Trainer, pl_module: LightningModule, moment: int) -> None:
        """Remembers the start where the fit begins, and begins again from it after that."""
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        if self._moment is None:
            self._optimizers = [deepcopy(optimizer.state_dict()) for optimizer in trainer.optimizers]
            self._schedulers = [deepcopy(scheduler.state_dict()) for scheduler in schedulers]
            return
        self.copy_student()
        initialise(pl_module, int.from_bytes(blake2b(f"{self._seed} {moment}".encode(), digest_size=8).digest()))
        for optimizer, state in zip(trainer.optimizers, self._optimizers, strict=True):
            optimizer.load_state_dict(deepcopy(state))
        for scheduler, state in zip(schedulers, self._schedulers, strict=True):
            scheduler.load_state_dict(deepcopy(state))


@torch.no_grad()
def initialise(module: LightningModule, seed: int) -> None:
    """Gives everything that learns in a module new weights, and leaves the random generators as they were.

    Each layer has its ``reset_parameters()``, the innermost first, so that a network whose constructor initialises its
    layers otherwise can do so there, too. What is frozen stays.
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
