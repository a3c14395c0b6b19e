"""What tests of several folders share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from kd_lightning.networks import TeacherConvNet

torch.set_num_threads(1)  # two threads on a shared core are slower than one, and by much


@pytest.fixture(scope="session")
def teacher_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint like that of a `Classifier` of `TeacherConvNet`: its weights are random."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = TeacherConvNet().state_dict()
    path = tmp_path_factory.mktemp("teacher") / "last.ckpt"
    torch.save({"state_dict": {f"student.{name}": tensor for name, tensor in state.items()}}, path)
    return path


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher_checkpoint: Path) -> Path:
    """The working folder, with a trained teacher where the shipped configurations look for it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "mnist" / "teacher"
    folder.mkdir(parents=True)
    shutil.copy(teacher_checkpoint, folder / "last.ckpt")
    return tmp_path
