"""A run's directory: its configuration, logs and checkpoints, of one run only."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar, RichProgressBar
from lightning.pytorch.cli import SaveConfigCallback
from torch import nn
from typing_extensions import override

from kd_lightning.callbacks import ExactResume, FastLoop, FaultTolerance, TeacherFreezing
from kd_lightning.cli.log_filters import show_announcements
from kd_lightning.core.directory_lock import DirectoryLock
from kd_lightning.core.errors import UsageError
from kd_lightning.core.files import atomic_write
from kd_lightning.core.freezing import is_frozen
from kd_lightning.core.learner import Learner
from kd_lightning.core.lookup import suggestion
from kd_lightning.core.traits import has_trait
from kd_lightning.weights.checkpoint_io import ELSEWHERE
from kd_lightning.weights.reading import WeightsError, check_version, read_weights

BAR_REFRESH = 50
"""Steps between two updates of the progress bar: at every step they would take a fifth of a small student's time."""


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into ``trainer.default_root_dir``; a run that is resumed there keeps its own.

    Lightning's announcements of seed and devices are logged once the run has started.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Do nothing: Lightning does not yet know if the run is resumed."""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = Path(trainer.default_root_dir)
        if trainer.is_global_zero and not _resumes(folder, trainer.ckpt_path):
            with atomic_write(folder / self.config_filename, ELSEWHERE) as stream:
                stream.write(self.parser.dump(self.config, skip_unset=False).encode())

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        show_announcements()

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        show_announcements()

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        show_announcements()


def add_default_callbacks(
    given: list[Callback],
    folder: str | Path,
    learner: LightningModule,
    checkpoints: bool,
    progress_bar: bool,
    handles_sigint: bool = False,
) -> list[Callback]:
    """Add the default callbacks of each kind that a run lacks: fault tolerance, resume, freezing, speed, checkpoints.

    Args:
        given: The run's own callbacks.
        folder: The run directory.
        learner: The module to train. For a `Learner`, ``best.ckpt`` follows its `monitor` and `mode`; any other module
            has ``last.ckpt`` alone.
        checkpoints: Write ``best.ckpt`` and ``last.ckpt``.
        progress_bar: Show a progress bar.
        handles_sigint: Stop at the end of an optimizer step after Ctrl-C.
    """
    first: list[Callback] = [] if _any(given, FaultTolerance) else [FaultTolerance(handles_sigint)]
    if not _any(given, ExactResume):
        first.append(ExactResume())  # before any callback that draws random numbers
    is_changed = any(has_trait(callback, "changes_teacher") for callback in given)
    teacher = getattr(learner, "teacher", None)
    has_frozen_teacher = isinstance(teacher, nn.Module) and is_frozen(teacher)
    if has_frozen_teacher and not is_changed and not _any(given, TeacherFreezing):
        first.append(TeacherFreezing())
    # under manual optimization it would only log, in each run, that it is not supported
    is_fast = learner.automatic_optimization and not _any(given, FastLoop)
    last: list[Callback] = [FastLoop()] if is_fast else []
    if progress_bar and not _any(given, ProgressBar):
        last.append(RichProgressBar(refresh_rate=BAR_REFRESH))
    if checkpoints and not _any(given, Checkpoint):
        # Two callbacks: an interrupted run saves its last state, which must not replace the best.
        where: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False}
        if isinstance(learner, Learner):
            best = ModelCheckpoint(
                filename="best", monitor=learner.monitor, mode=learner.mode, save_on_train_epoch_end=False, **where
            )
            last.append(best)
        last.append(ModelCheckpoint(filename="last", save_on_train_epoch_end=True, save_on_exception=True, **where))
    return [*first, *given, *last]


def default_checkpoint(folder: str | Path) -> str:
    """Return ``best``, or ``last`` for a run that had no validation."""
    without = (Path(folder) / "last.ckpt").is_file() and not (Path(folder) / "best.ckpt").exists()
    return "last" if without else "best"


def find_checkpoint(folder: str | Path, wanted: str | None) -> str | None:
    """Return the path of a checkpoint: ``last`` and ``best`` are those of the run directory.

    Raises:
        UsageError: There is no such file.
    """
    if wanted is None:
        return None
    path = Path(folder) / f"{wanted}.ckpt" if wanted in ("last", "best") else Path(wanted).expanduser()
    if not path.is_file():
        known = suggestion(str(path), map(str, path.parent.glob("*.ckpt")))
        raise UsageError(f"ckpt_path: {path} does not exist{known or ': fit first, or name another --ckpt_path'}")
    return str(path)


def check_checkpoint(path: str) -> None:
    """Check a checkpoint before Lightning loads it, whose messages are less clear.

    Raises:
        UsageError: It cannot be read, or is not a run's checkpoint.
    """
    try:
        read_weights(path, "student")
    except WeightsError as error:
        raise UsageError(f"ckpt_path: {error}") from None
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True) if is_zipfile(path) else {}
    try:
        check_version(content, path)
    except WeightsError as error:
        raise UsageError(f"ckpt_path: {error}") from None
    if "pytorch-lightning_version" not in content:
        raise UsageError(
            f"ckpt_path: {path} contains weights, but is not a run's checkpoint: name a last.ckpt or best.ckpt"
        )


def refuse_second_run(folder: str | Path, ckpt_path: str | None) -> None:
    """Refuse a new run in the directory of another: metrics would mix, and checkpoints would be replaced.

    A directory with a checkpoint or metrics has a run: a start that failed before either may be repeated in place.

    Raises:
        UsageError: The directory has a run, and `ckpt_path` is none of its checkpoints.
    """
    folder = Path(folder)
    checkpoints = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    if (checkpoints or (folder / "metrics.csv").exists()) and not _resumes(folder, ckpt_path):
        resume = f"resume it with --ckpt_path {checkpoints[-1]}, or " if checkpoints else ""
        raise UsageError(
            f"trainer.default_root_dir: {folder} has a run already: {resume}name another directory "
            f"with --trainer.default_root_dir {folder}-2"
        )


def claim(folder: str | Path, ckpt_path: str | None) -> DirectoryLock:
    """Lock the run directory for this process, which is to release it.

    Raises:
        UsageError: Another process runs there, or `refuse_second_run` refuses.
        WriteError: The directory is not writable.
    """
    refuse_second_run(folder, ckpt_path)  # first: a refusal creates no directory
    lock = DirectoryLock(folder, "a run", f"name another directory with --trainer.default_root_dir {folder}-2")
    lock.acquire()
    try:
        refuse_second_run(folder, ckpt_path)  # again: another run may have ended in between
    except UsageError:
        lock.release()
        raise
    return lock


def _any(given: list[Callback], kind: type[Callback]) -> bool:
    return any(isinstance(callback, kind) for callback in given)


def _resumes(folder: Path, ckpt_path: Any) -> bool:
    return ckpt_path is not None and Path(ckpt_path).resolve().parent == folder.resolve()
