"""A checkpoint is the old one or the whole new one, wherever its write ends; damage is found when it is read."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kd_lightning.core.files import WriteError
from kd_lightning.speed.teacher_cache.file import CorruptFileError, TensorSpec, Writer, read
from kd_lightning.weights import WeightsError, export_student, load_student, load_teacher
from kd_lightning.weights.checkpoint_io import AtomicCheckpointIO

OLD, NEW = ({"state_dict": {"weight": torch.full((64, 256), value)}, "global_step": int(value)} for value in (1.0, 2.0))
IO = AtomicCheckpointIO()


def saved_step(path: Path) -> int:
    return IO.load_checkpoint(path, weights_only=True)["global_step"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Breaks:
    """Ends a write after so many bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int, action: Callable[[], None]) -> None:
        self.left, self.action = after, action
        opened = os.fdopen

        def fdopen(*arguments: Any) -> Any:
            stream = opened(*arguments, 0) if arguments[1:] == ("w+b",) else opened(*arguments)
            written = stream.write

            def write(content: Any) -> int:
                self.left -= len(content)
                if self.left < 0:
                    written(bytes(content)[: self.left])
                    self.action()
                return written(content)

            return Proxy(stream, write)

        monkeypatch.setattr(os, "fdopen", fdopen)


class Proxy:
    """A stream with another `write`."""

    def __init__(self, stream: Any, write: Callable[[Any], int]) -> None:
        self.stream, self.write = stream, write

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("after", [0, 1, 200, 40_000, 66_000])
def test_a_full_disk_leaves_the_old_checkpoint_and_no_other_file(after, tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    IO.save_checkpoint(OLD, path)
    with monkeypatch.context() as patch:
        Breaks(patch, after, full)
        with pytest.raises(WriteError, match=r"last\.ckpt cannot be written \(No space left on device\): free space"):
            IO.save_checkpoint(NEW, path)
    assert saved_step(path) == 1
    assert names(tmp_path) == ["last.ckpt"]
    IO.save_checkpoint(NEW, path)
    assert saved_step(path) == 2


def killed_while_saving(path: Path, after: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Breaks(patch, after, lambda: os.kill(os.getpid(), signal.SIGKILL))
        IO.save_checkpoint(NEW, path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*use of fork.. may lead to deadlocks:DeprecationWarning")
@pytest.mark.parametrize("after", [1, 40_000, 66_000])
def test_a_kill_in_the_middle_of_a_save_leaves_the_old_checkpoint(after, tmp_path, monkeypatch):
    folder, temporary = tmp_path / "run", tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    path = folder / "last.ckpt"
    IO.save_checkpoint(OLD, path)
    process = multiprocessing.get_context("fork").Process(target=killed_while_saving, args=(path, after))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert saved_step(path) == 1
    assert len(names(folder)) == 2  # the half file, which the next save removes
    IO.save_checkpoint(NEW, path)
    assert saved_step(path) == 2
    assert names(folder) == ["last.ckpt"]
    assert names(temporary) == []


def test_nothing_is_written_to_the_directory_of_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null/missing")
    IO.save_checkpoint(OLD, tmp_path / "last.ckpt")
    assert saved_step(tmp_path / "last.ckpt") == 1


def test_paths_of_other_file_systems_are_lightnings(tmp_path):
    IO.save_checkpoint(OLD, f"file://{tmp_path}/last.ckpt")
    assert saved_step(tmp_path / "last.ckpt") == 1
    assert IO.load_checkpoint(f"file://{tmp_path}/last.ckpt", weights_only=True)["global_step"] == 1
    with pytest.raises(TypeError, match="storage_options"):
        IO.save_checkpoint(OLD, tmp_path / "last.ckpt", storage_options={"key": 1})


def same(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def refusal(load: Callable[[Path], Any], path: Path, whole: Any) -> str:
    """The error of a file's loader; nothing if it reads the whole content."""
    try:
        loaded = load(path)
    except (WeightsError, CorruptFileError) as error:
        return str(error)
    return "" if same(loaded, whole) else "read in silence"


def _checkpoint(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    IO.save_checkpoint(OLD | {"epoch": 3, "callbacks": {"name": [1, 2.5]}}, folder / "last.ckpt")
    return folder / "last.ckpt", lambda path: IO.load_checkpoint(path, weights_only=True)


def _teacher(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    torch.save(nn.Linear(64, 32).state_dict(), folder / "teacher.ckpt")
    return folder / "teacher.ckpt", lambda path: load_teacher(nn.Linear(64, 32), path).state_dict()


def _export(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    path = export_student(nn.Linear(64, 32), folder / "student.safetensors")
    path.with_name(path.name + ".sha256").unlink()  # the file's own hash is enough
    return path, lambda path: load_student(path, nn.Linear(64, 32)).state_dict()


def _cache(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    writer = Writer(folder, "teacher", {"logits": TensorSpec(torch.float32, (64, 10))})
    writer.put("logits", 0, torch.randn(64, 10))
    writer.finish(folder / "teacher.safetensors", "a" * 64)
    return folder / "teacher.safetensors", lambda path: read(path, "a" * 64)


@pytest.mark.parametrize("kind", [_checkpoint, _teacher, _export, _cache])
def test_a_flipped_bit_is_found_or_without_effect(kind, tmp_path):
    path, load = kind(tmp_path)
    whole, content = load(path), path.read_bytes()
    whole = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in whole.items()}
    chosen = random.Random(0)
    found = 0
    for place in range(40):  # one in each fortieth of the file
        bit = int((place + chosen.random()) * len(content) * 8 / 40)
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.unlink()  # the cache's file is mapped
        path.write_bytes(flipped)
        message = refusal(load, path, whole)
        found += bool(message)
        assert not message or (str(path) in message and "\n" not in message), f"bit {bit} of {len(content) * 8}"
    assert found >= 30
