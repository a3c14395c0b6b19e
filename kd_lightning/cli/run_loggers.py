"""A run's logs in its directory: TensorBoard's event files, and ``metrics.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Set
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from typing_extensions import override

from kd_lightning.core.files import WriteError, atomic_write
from kd_lightning.core.lightning_internals import AppendingWriter, set_csv_writer
from kd_lightning.weights.checkpoint_io import ELSEWHERE


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


def read_metrics(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read the columns and the whole rows of a ``metrics.csv``; bytes that are not UTF-8 become question marks.

    Raises:
        ValueError: It is not a table with a column ``step``.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]  # a killed process may leave half a row at the end
    try:
        table = csv.DictReader(io.StringIO(whole.replace("\0", "\ufffd"), newline=""))
        columns = list(table.fieldnames or [])
        rows = [row for row in table if None not in row and None not in row.values()]
    except csv.Error as error:
        raise ValueError(str(error)) from None
    if "step" not in columns:
        raise ValueError("it has no column `step`")
    return columns, rows


def default_loggers(folder: str | Path) -> list[Logger]:
    """Build the loggers of a run that names none: TensorBoard's event files and ``metrics.csv`` in its directory."""
    return [TensorBoardEvents(folder), MetricsFile(folder)]
