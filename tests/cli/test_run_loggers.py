"""metrics.csv: what a resumed run keeps of it, whatever happened to the file; errors of writing it in one line."""

from __future__ import annotations

import csv
import errno
import os
import re
from pathlib import Path

import pytest
from lightning.pytorch.loggers import Logger

from kd_lightning.__main__ import main
from kd_lightning.cli.extras import version_of
from kd_lightning.cli.run_loggers import MetricsFile, TensorBoardEvents, read_metrics
from kd_lightning.core.files import WriteError

HEADER = b"loss,step\r\n"
ROWS = b"0.5,0\r\n0.25,1\r\n0.125,2\r\n"


def continued(folder: Path, content: bytes) -> list[dict[str, str]]:
    """The rows after a run that resumes at step 2."""
    (folder / "metrics.csv").write_bytes(content)
    file = MetricsFile(folder)
    file.log_metrics({"loss": 9.0}, 2)
    file.log_metrics({"loss": 9.0, "new": 1.0}, 3)
    file.save()
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as written:
        return list(csv.DictReader(written))


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (HEADER + ROWS, ["0.5", "0.25"]),
        (HEADER + ROWS + b"0.1,1", ["0.5", "0.25"]),  # a kill in the middle of 0.1,10
        (HEADER + b"0.5,0\r\n0.25\r\n", ["0.5"]),
        (HEADER + b"0.5,0\r\n\xff\xfe,1\r\n", ["0.5", "\ufffd\ufffd"]),
        (HEADER + b"0.5,0\r\n\x00,1\r\n", ["0.5", "\ufffd"]),
        (HEADER + b"0.5,0\r\n1,\xff\r\n", ["0.5"]),
        (HEADER, []),
        (HEADER[:6], None),
        (b"", None),
        (b"\xff\xfe\x00" * 50, None),
        (b"loss,epoch\r\n0.5,0\r\n", None),
        (HEADER + b'"' + b"a" * 200_000 + b'",0\r\n', None),
    ],
)
@pytest.mark.filterwarnings("ignore:.*metrics.damaged.csv:UserWarning")
def test_a_damaged_file_is_continued_or_set_aside(content, kept, tmp_path):
    rows = continued(tmp_path, content)
    assert [row["loss"] for row in rows] == [*(kept or []), "9.0", "9.0"]
    assert [row["new"] for row in rows[-2:]] == ["", "1.0"]
    aside = [] if kept is not None else ["metrics.damaged.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", *aside]
    if aside:
        assert (tmp_path / aside[0]).read_bytes() == content


def test_a_file_that_is_set_aside_is_named(tmp_path):
    with pytest.warns(UserWarning, match=r"metrics\.csv: it has no column `step`: it is now metrics\.damaged\.csv"):
        continued(tmp_path, b"a,b\r\n1,2\r\n")


def test_new_columns_replace_the_file_in_one_step(tmp_path, monkeypatch):
    """Lightning writes the whole file again where a column is new."""
    file = MetricsFile(tmp_path)
    file.log_metrics({"loss": 1.0}, 0)
    file.save()
    before = (tmp_path / "metrics.csv").read_bytes()
    file.log_metrics({"new": 1.0}, 1)
    with monkeypatch.context() as patch:
        patch.setattr(
            Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        )
        with pytest.raises(WriteError, match=r"metrics\.csv cannot be written \(No space left on device\): free space"):
            file.save()
    assert (tmp_path / "metrics.csv").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_directory_that_is_gone_is_one_line(tmp_path):
    folder = tmp_path / "run"
    file = MetricsFile(folder)
    file.log_metrics({"loss": 1.0}, 0)
    folder.rmdir()
    with pytest.raises(WriteError, match=re.escape("run/metrics.csv cannot be written (No such file or directory)")):
        file.save()


def test_the_event_writer_has_no_hyperparameter_file(tmp_path):
    logger = TensorBoardEvents(tmp_path)
    logger.log_hyperparams({"lr": 0.1})
    logger.log_metrics({"loss": 1.0}, 0)
    logger.save()
    logger.finalize("success")
    assert {path.name.split(".")[0] for path in tmp_path.iterdir()} == {"events"}


class FakeLogger(Logger):
    """Stands in for a logger of a service."""

    def __init__(self, *args: object, **settings: object) -> None:
        super().__init__()
        self.settings, self.logged = (args, settings), []
        FAKES.append(self)

    name, version = "fake", ""

    def log_metrics(self, metrics, step=None):
        self.logged.append((step, metrics))

    def log_hyperparams(self, params, *args, **kwargs):
        """Do nothing."""


FAKES: list[FakeLogger] = []


@pytest.mark.parametrize(("name", "kind"), [("wandb", "WandbLogger"), ("mlflow", "MLFlowLogger")])
def test_a_logger_of_a_service_comes_on_top(name, kind, config, monkeypatch):
    FAKES.clear()
    monkeypatch.setattr(f"lightning.pytorch.loggers.{kind}", FakeLogger)
    monkeypatch.setattr("kd_lightning.cli.run_loggers.version_of", lambda package: "1.0" if package == name else "")
    assert main(["fit", config, f"--log={name},csv"]) == 0
    (fake,) = FAKES
    assert "mine" in fake.settings[1].values()
    columns, rows = read_metrics(Path("runs/mine/metrics.csv"))
    logged = {(key, step): value for step, metrics in fake.logged for key, value in metrics.items()}
    written = {(key, int(row["step"])): row[key] for row in rows for key in columns if row[key] and key != "step"}
    assert {"train/kd", "val/acc"} <= {key for key, _ in logged}
    assert {key: float(value) for key, value in written.items()} == pytest.approx(logged, nan_ok=True)
    assert list(Path("runs/mine").glob("events.*"))
    assert main(["test", "--config=runs/mine/config.yaml"]) == 0  # which names the option, too
    assert len(FAKES) == 1


def test_metrics_csv_beside_an_own_logger(series):
    own = "--trainer.logger={class_path: TensorBoardLogger, init_args: {save_dir: own}}"
    given = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1"]
    assert main(["fit", series, own, *given]) == 0
    assert not Path("runs/run/metrics.csv").exists()
    assert main(["fit", series, own, *given, "--log=csv", "--trainer.default_root_dir=runs/two"]) == 0
    columns, rows = read_metrics(Path("runs/two/metrics.csv"))
    assert "loss" in columns
    assert len(rows) == 5
    assert len(list(Path("own").rglob("events.*"))) == 2


@pytest.mark.skipif(bool(version_of("wandb")), reason="wandb is installed")
@pytest.mark.parametrize(
    ("option", "place"),
    [("--log=wandb", "log: wandb needs"), ("--trainer.logger=WandbLogger", "trainer.logger: needs")],
)
def test_a_package_that_is_missing_costs_one_line(option, place, config, capfd):
    assert main(["fit", config, option]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line == f"kd-lightning: {place} the package wandb, which is not installed: pip install wandb"
    assert not Path("runs").exists()


def test_an_unknown_logger_costs_one_line(config, capsys):
    assert main(["fit", config, "--log=tensorbord"]) == 2
    assert "log: there is no logger 'tensorbord'; there are 'csv', 'mlflow', 'wandb'" in capsys.readouterr().err
