"""A run's logs in its directory: TensorBoard's event files, and ``metrics.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Set
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import loggers
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from typing_extensions import override

from kd_lightning.cli.extras import LOGGERS, version_of
from kd_lightning.core.files import WriteError, atomic_write
from kd_lightning.core.lightning_internals import AppendingWriter, set_csv_writer
from kd_lightning.core.lookup import suggestion
from kd_lightning.core.metrics_file import read_metrics
from kd_lightning.weights.checkpoint_io import ELSEWHERE

BESIDE = ("csv", "wandb", "mlflow")
"""Loggers that ``--log`` adds beside a run's own."""
PROJECT = "kd-lightning"
"""The name of the runs' project at Weights & Biases, and of their experiment in MLflow."""


class TensorBoardEvents(TensorBoardLogger):
    """TensorBoard's event files in a run directory, without Lightning's ``hparams.yaml``: ``config.yaml`` has it all.

    Args:
        folder: The run directory.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)

    @override
    def save(self) -> None:
        self.experiment.flush()


class MetricsFile(CSVLogger):
    """``metrics.csv``, which a resumed run continues: rows that it logs again, and all after them, are replaced.

    Args:
        folder: The run directory.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, name="", version="")
        self._writer: _ContinuedWriter | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The writer of the rows."""
        if self._writer is None:
            self._writer = _ContinuedWriter(self.log_dir)
            set_csv_writer(self, self._writer)
        return self._writer


class _ContinuedWriter(AppendingWriter):
    """Drops the old rows from the first new step on, then appends."""

    @override
    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        if self.has_rows:
            self._drop_rows_from(step or 0, metrics_dict.keys() - {"epoch"})
            self.has_rows = False
        super().log_metrics(metrics_dict, step)

    @override
    def save(self) -> None:
        try:
            super().save()
        except WriteError:
            raise
        except OSError as error:
            raise WriteError(self.metrics_file_path, error, ELSEWHERE) from error

    @override
    def write_all(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        content = io.StringIO(newline="")
        writer = csv.DictWriter(content, columns)
        writer.writeheader()
        writer.writerows(rows)
        with atomic_write(Path(self.metrics_file_path), ELSEWHERE) as stream:
            stream.write(content.getvalue().encode())

    def _drop_rows_from(self, step: int, names: Set[str]) -> None:
        """Keep whole rows before those that are logged again; a file that has none is set aside, with a warning."""
        path = Path(self.metrics_file_path)
        try:
            columns, rows = read_metrics(path)
        except ValueError as error:
            aside = path.with_name("metrics.damaged.csv")
            path.replace(aside)
            rank_zero_warn(f"{path}: {error}: it is now {aside.name}, and metrics.csv has the rows from step {step} on")
            return

        def stays(row: dict[str, str]) -> bool:
            number = int(row["step"]) if row["step"].isdigit() else step
            # a validation that is run again at the resume has the step of a training row, which stays
            return number < step or (number == step and not any(row.get(name) for name in names))

        self.metrics_keys = columns
        self.write_all(columns, [row for row in rows if stays(row)])


def default_loggers(folder: str | Path) -> list[Logger]:
    """Build the loggers of a run that names none: TensorBoard's event files and ``metrics.csv`` in its directory."""
    return [TensorBoardEvents(folder), MetricsFile(folder)]


def logger_fault(names: str | None) -> str:
    """Check the names of loggers of ``--log``; empty where each can be used.

    Example:
        >>> logger_fault("csv,wnadb")
        "there is no logger 'wnadb'; did you mean 'wandb'?"
    """
    for name in _split(names):
        if name not in BESIDE:
            return f"there is no logger {name!r}{suggestion(name, BESIDE)}"
        if (package := LOGGERS[name]) and not version_of(package):
            return f"{name} needs the package {package}, which is not installed: pip install {package}"
    return ""


def with_loggers(given: Any, names: str, folder: str | Path) -> list[Logger]:
    """Add the loggers of ``--log`` to a run's own.

    Args:
        given: The trainer's loggers: one, several, or False for none.
        names: ``csv``, ``wandb`` or ``mlflow``, or several with commas.
        folder: The run directory.
    """
    found: list[Logger] = [*given] if isinstance(given, list) else [given] if given else []
    title = Path(folder).name
    for name in _split(names):
        if name == "wandb":
            found.append(loggers.WandbLogger(name=title, save_dir=folder, project=PROJECT))
        elif name == "mlflow":
            uri = f"file:{Path(folder).resolve() / 'mlruns'}"
            found.append(loggers.MLFlowLogger(PROJECT, run_name=title, tracking_uri=uri))
        elif not any(isinstance(logger, MetricsFile) for logger in found):
            found.append(MetricsFile(folder))
    return found


def _split(names: str | None) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in names.split(","))) if names else []
