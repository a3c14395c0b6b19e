"""FaultTolerance's files: atomic checkpoints, one run a directory, and logs that are not behind a checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from kd_lightning import UsageError
from kd_lightning.callbacks import FaultTolerance
from kd_lightning.core.directory_lock import NAME
from kd_lightning.weights import WeightsError
from kd_lightning.weights.checkpoint_io import AtomicCheckpointIO
from tests import toys

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")


class Look(Callback):
    """What is there while a fit runs."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.io = trainer.strategy.checkpoint_io
        self.locked = (Path(trainer.default_root_dir) / NAME).exists()


def checkpoint(folder: Path, **changes: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="last", **{"enable_version_counter": False} | changes)


def fit(folder: Path, *callbacks: Callback, ckpt_path: Any = None, **changes: Any) -> Any:
    trainer = toys.trainer(folder, FaultTolerance(), *callbacks, **{"max_epochs": 1} | changes)
    trainer.fit(learner := toys.classifier(), toys.data(), ckpt_path=ckpt_path)
    return learner


@pytest.mark.parametrize("versions", [False, True])
def test_checkpoints_are_atomic_and_the_directory_of_files_that_are_replaced_is_locked(versions, tmp_path):
    fit(tmp_path, look := Look(), checkpoint(tmp_path, enable_version_counter=versions))
    assert type(look.io) is AtomicCheckpointIO
    assert look.locked != versions
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


class Own(TorchCheckpointIO):
    """A CheckpointIO of the user."""


def test_a_checkpoint_io_of_ones_own_stays(tmp_path):
    fit(tmp_path, look := Look(), checkpoint(tmp_path), plugins=[own := Own()])
    assert look.io is own


class Rows(Callback):
    """The rows on the disk when a checkpoint is written."""

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        lines = (Path(trainer.default_root_dir) / "metrics.csv").read_text().splitlines()
        self.saved = checkpoint["global_step"], len(lines) - 1


def test_logs_are_written_before_a_checkpoint(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    fit(tmp_path, rows := Rows(), checkpoint(tmp_path, every_n_train_steps=3), logger=logger)
    step, count = rows.saved
    assert step == 3
    assert count == 2  # Lightning logs the third step when the callbacks have had it


HOLD = """
import sys, time
from kd_lightning.core.directory_lock import DirectoryLock
DirectoryLock(sys.argv[1], "a run", "").acquire()
print(flush=True)
time.sleep(60)
"""


def test_a_second_run_is_refused_and_touches_no_file(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(
            UsageError, match=rf"process {process.pid} on .* has a run there: wait for its end, or name"
        ):
            fit(tmp_path, checkpoint(tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == [NAME]
    finally:
        process.kill()
        process.communicate()
    fit(tmp_path, checkpoint(tmp_path))  # the lock has ended with its process


class Fails(Callback):
    """An error in the middle of a fit."""

    def on_train_batch_end(self, *_: Any) -> None:
        raise RuntimeError("in a step")


def test_a_fit_that_fails_unlocks_its_directory(tmp_path):
    with pytest.raises(RuntimeError, match="in a step"):
        fit(tmp_path, checkpoint(tmp_path), Fails())
    assert not (tmp_path / NAME).exists()


def test_a_resume_reads_the_checksums(tmp_path):
    fit(tmp_path, checkpoint(tmp_path))
    path = tmp_path / "last.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"last\.ckpt: is corrupt"):
        fit(tmp_path, checkpoint(tmp_path), ckpt_path=path, max_epochs=2)
    assert os.listdir(tmp_path) == ["last.ckpt"]  # noqa: PTH208
