"""A run's folder: what the command line puts there, and that it never puts two runs into one."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar, RichProgressBar
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from typing_extensions import override

from kd_lightning.callbacks import ExactResume, FastLoop, TeacherFreezing
from kd_lightning.cli.errors import nearest
from kd_lightning.core.errors import UsageError
from kd_lightning.core.freezing import is_frozen
from kd_lightning.core.learner import Learner
from kd_lightning.core.lightning_internals import AppendingWriter, set_csv_writer
from kd_lightning.core.traits import has_trait
from kd_lightning.weights.reading import WeightsError, read_weights

BAR_REFRESH = 50  # at every step the bar alone would cost a small student a fifth of its time


class RunFolder(SaveConfigCallback):
    """Writes the configuration into ``trainer.default_root_dir``; a run that is resumed there keeps the one it has."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Does nothing: it is not known yet whether the run is resumed."""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = Path(trainer.default_root_dir)
        if trainer.is_global_zero and not _resumes(folder, trainer.ckpt_path):
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, folder / self.config_filename, skip_unset=False, overwrite=True)


class Events(TensorBoardLogger):
    """TensorBoard's events in a run's folder, without Lightning's ``hparams.yaml``: ``config.yaml`` says it all.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)

    @override
    def save(self) -> None:
        self.experiment.flush()


class MetricsFile(CSVLogger):
    """``metrics.csv``, which a resumed run goes on with: what it had from the step of the checkpoint on is replaced.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, name="", version="")
        self._writer: _Rows | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Writes the rows."""
        if self._writer is None:
            self._writer = _Rows(self.log_dir)
            set_csv_writer(self, self._writer)
        return self._writer


class _Rows(AppendingWriter):
    @override
    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        if self.has_rows:
            self._cut(step or 0)
            self.has_rows = False
        super().log_metrics(metrics_dict, step)

    def _cut(self, step: int) -> None:
        path = Path(self.metrics_file_path)
        unfinished = path.with_name(f".{path.name}")
        with path.open(encoding="utf-8", newline="") as old, unfinished.open("w", encoding="utf-8", newline="") as new:
            rows = csv.DictReader(old)
            self.metrics_keys = list(rows.fieldnames or [])
            writer = csv.DictWriter(new, self.metrics_keys)
            writer.writeheader()
            writer.writerows(row for row in rows if (row["step"] or "").isdigit() and int(row["step"]) < step)
        unfinished.replace(path)


def loggers(folder: str | Path) -> list[Logger]:
    """What a run logs to unless it says otherwise: TensorBoard's events and ``metrics.csv``, both in its folder."""
    return [Events(folder), MetricsFile(folder)]


def callbacks(
    given: list[Callback], folder: str | Path, learner: LightningModule, checkpoints: bool, progress_bar: bool
) -> list[Callback]:
    """The callbacks of a run: its own, and by default what it has not brought itself of the kind.

    Args:
        given: The run's own.
        folder: The run's folder.
        learner: What is trained.
        checkpoints: Whether to write ``best.ckpt`` and ``last.ckpt``.
        progress_bar: Whether to show one.
    """
    first: list[Callback] = []
    if not _any(given, ExactResume):
        first.append(ExactResume())  # before whatever draws random numbers
    is_changed = any(has_trait(callback, "changes_teacher") for callback in given)
    if is_frozen(getattr(learner, "teacher", learner)) and not is_changed and not _any(given, TeacherFreezing):
        first.append(TeacherFreezing())
    # under manual optimization it would only tell, in each run, that it cannot help
    is_fast = learner.automatic_optimization and not _any(given, FastLoop)
    last: list[Callback] = [FastLoop()] if is_fast else []
    if progress_bar and not _any(given, ProgressBar):
        last.append(RichProgressBar(refresh_rate=BAR_REFRESH))
    if checkpoints and not _any(given, Checkpoint):
        # Two, for an interrupted run saves what it has reached, and that must not replace the best.
        where: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False}
        if isinstance(learner, Learner):
            best = ModelCheckpoint(
                filename="best", monitor=learner.monitor, mode=learner.mode, save_on_train_epoch_end=False, **where
            )
            last.append(best)
        last.append(ModelCheckpoint(filename="last", save_on_train_epoch_end=True, save_on_exception=True, **where))
    return [*first, *given, *last]


def to_look_at(folder: str | Path) -> str:
    """``best``, or ``last`` in the folder of a run that had no validation to say which was."""
    without = (Path(folder) / "last.ckpt").is_file() and not (Path(folder) / "best.ckpt").exists()
    return "last" if without else "best"


def checkpoint(folder: str | Path, wanted: str | None) -> str | None:
    """The path of a checkpoint: ``last`` and ``best`` are those of the run's folder.

    Raises:
        UsageError: There is no such file.
    """
    if wanted is None:
        return None
    path = Path(folder) / f"{wanted}.ckpt" if wanted in ("last", "best") else Path(wanted).expanduser()
    if not path.is_file():
        there = nearest(str(path), map(str, path.parent.glob("*.ckpt"))) or ": fit first, or name another --ckpt_path"
        raise UsageError(f"ckpt_path: {path} is no file{there}")
    return str(path)


def check_checkpoint(path: str) -> None:
    """Looks into a checkpoint before Lightning does, which has less to say about what is wrong with one.

    Raises:
        UsageError: It cannot be read, or is not of a run.
    """
    try:
        read_weights(path, "student")
    except WeightsError as error:
        raise UsageError(f"ckpt_path: {error}") from None
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True) if is_zipfile(path) else {}
    if "pytorch-lightning_version" not in content:
        raise UsageError(
            f"ckpt_path: {path} holds weights, but is no checkpoint of a run: name its last.ckpt or best.ckpt"
        )


def refuse_second_run(folder: str | Path, ckpt_path: str | None) -> None:
    """Two runs in one folder would mix their metrics, and the second would replace the first one's checkpoints.

    A checkpoint or metrics make a folder a run's: a start that failed before either may be repeated in place.

    Raises:
        UsageError: The folder holds a run, and `ckpt_path` is none of its checkpoints.
    """
    folder = Path(folder)
    checkpoints = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    if (checkpoints or (folder / "metrics.csv").exists()) and not _resumes(folder, ckpt_path):
        resume = f"resume it with --ckpt_path {checkpoints[-1]}, or " if checkpoints else ""
        raise UsageError(
            f"trainer.default_root_dir: {folder} holds a run already: {resume}name another folder "
            f"with --trainer.default_root_dir {folder}-2"
        )


def _any(given: list[Callback], kind: type[Callback]) -> bool:
    return any(isinstance(callback, kind) for callback in given)


def _resumes(folder: Path, ckpt_path: Any) -> bool:
    return ckpt_path is not None and Path(ckpt_path).resolve().parent == folder.resolve()
