"""The last lines of ``kd-lightning fit``: figures of its checkpoints, the run directory, and the next commands."""

from __future__ import annotations

import time
from pathlib import Path
from shlex import quote

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.model_helpers import is_overridden
from typing_extensions import override

from kd_lightning.core.attached import callbacks_of
from kd_lightning.core.learner import Learner

MOST = 6
"""Figures of one line."""
Figures = dict[str, float]


class FitSummary(Callback):
    r"""Remembers the figures of each validation of a fit, and describes the fit at its end.

    Example:
        >>> print("\n".join(FitSummary().lines(Trainer(logger=False, default_root_dir="runs/kd"), LightningModule())))
        runs/kd: 0 epochs, 0 steps in 0 s
    """

    def __init__(self) -> None:
        self.figures: dict[int, Figures] = {}
        """The figures of a validation by the number of optimizer steps before it."""
        self.started = self.ended = time.monotonic()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.monotonic()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.figures[trainer.global_step] = _evaluated(trainer)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.ended = time.monotonic()

    def lines(self, trainer: Trainer, model: LightningModule, data: LightningDataModule | None = None) -> list[str]:
        """Describe a fit that has ended.

        Args:
            trainer: Its trainer.
            model: What it trained.
            data: The data, for the next commands.
        """
        folder = Path(trainer.default_root_dir)
        seconds = self.ended - self.started
        found = [f"{folder}: {trainer.current_epoch} epochs, {trainer.global_step} steps in {seconds:.0f} s"]
        files = self._files(trainer)
        found += [f"  {_below(path, folder)}{': ' if about else ''}{about}" for path, about in files]
        commands = _next_commands(trainer, model, data, files)
        return found + [f"{'      ' if index else 'next: '}{command}" for index, command in enumerate(commands)]

    def _files(self, trainer: Trainer) -> list[tuple[Path, str]]:
        """List the best and the last checkpoint with their figures."""
        found: dict[Path, str] = {}
        step = trainer.global_step
        last = _text(step, self.figures.get(step, {}) if self.figures else _evaluated(trainer))
        for callback in callbacks_of(trainer):
            if not isinstance(callback, ModelCheckpoint):
                continue
            if callback.monitor and callback.best_model_path and callback.best_model_score is not None:
                score = callback.best_model_score.item()
                found[Path(callback.best_model_path)] = self._of_best(callback.monitor, score)
            elif callback.monitor is None and callback.best_model_path:
                found[Path(callback.best_model_path)] = last
            if callback.last_model_path:
                found[Path(callback.last_model_path)] = last
        return [(path, about) for path, about in found.items() if path.exists()]

    def _of_best(self, monitor: str, score: float) -> str:
        for step, figures in self.figures.items():
            if figures.get(monitor) == score:
                return _text(step, figures)
        return f"{monitor} {score:.4f}"  # a figure of the training, or of before the resume


def _evaluated(trainer: Trainer) -> Figures:
    """Return what a trainer has last logged, without the means of the training and the temperatures."""
    values = trainer.callback_metrics.items()
    return {name: value.item() for name, value in values if not name.startswith(("train", "temperature/"))}


def _text(step: int, figures: Figures) -> str:
    return ", ".join([f"step {step}", *(f"{name} {value:.4f}" for name, value in sorted(figures.items())[:MOST])])


def _next_commands(
    trainer: Trainer, model: LightningModule, data: LightningDataModule | None, files: list[tuple[Path, str]]
) -> list[str]:
    folder = Path(trainer.default_root_dir)
    config = folder / "config.yaml"
    found: list[str] = []
    tests = is_overridden("test_step", model) and data is not None and is_overridden("test_dataloader", data)
    if tests and files and config.is_file():
        found.append(f"kd-lightning test --config {quote(str(config))}")
    if files and isinstance(model, Learner):
        path = folder / _below(files[0][0], folder)
        found.append(f"kd-lightning export --checkpoint {quote(str(path))} --output student.safetensors")
    if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
        found.append(f"tensorboard --logdir {quote(str(folder))}")
    return found


def _below(path: Path, folder: Path) -> str:
    resolved, root = path.resolve(), folder.resolve()
    return str(resolved.relative_to(root)) if resolved.is_relative_to(root) else str(path)
