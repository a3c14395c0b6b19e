from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kd_lightning.speed.teacher_cache.file import CorruptFileError, TensorSpec, Writer, read

KEY = "ab" * 32
TENSORS = {
    "bool": torch.tensor([[True], [False], [True], [True]]),
    "half": torch.arange(8).view(4, 2).bfloat16(),
    "double": torch.rand(4, dtype=torch.float64),
    "logits": torch.rand(4, 3, 2),
    "index": torch.tensor([7, 1, 5, 3]),
}


def written(folder: Path, tensors=TENSORS, key: str = KEY) -> Path:
    """In pieces, and from the end."""
    writer = Writer(folder, "teacher", {name: TensorSpec(value.dtype, value.shape) for name, value in tensors.items()})
    for start in (3, 1, 0):
        for name, value in tensors.items():
            writer.put(name, start, value[start : {3: 4, 1: 3, 0: 1}[start]])
    writer.finish(folder / "file.safetensors", key)
    return folder / "file.safetensors"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_written_is_read_back_and_nothing_else_is_left(tmp_path):
    path = written(tmp_path / "new" / "folder")
    found = read(path, KEY)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in TENSORS.items())
    assert names(path.parent) == ["file.safetensors"]


def test_everyone_can_read_it(tmp_path):
    """By the other implementation of the format."""
    found = load_file(written(tmp_path))
    assert all(torch.equal(found[name], value) for name, value in TENSORS.items())


def test_what_is_not_looked_at_is_not_in_memory(tmp_path):
    path = written(tmp_path)
    assert str(path) not in Path("/proc/self/maps").read_text()
    found = read(path, KEY)
    assert str(path) in Path("/proc/self/maps").read_text()
    found["logits"][0] = 0.0  # and the file stays what it is
    assert torch.equal(read(path, KEY)["logits"], TENSORS["logits"])


def test_every_byte_counts(tmp_path):
    path = written(tmp_path)
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(CorruptFileError, match=r"file\.safetensors (is missing|differs)") as caught:
            read(path, KEY)
        assert "\n" not in str(caught.value)
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(CorruptFileError, match="is missing or truncated"):
            read(path, KEY)
    path.write_bytes(content + b"\0")
    with pytest.raises(CorruptFileError, match="is missing or truncated"):
        read(path, KEY)
    path.write_bytes(content)
    read(path, KEY)


def test_a_file_of_another_key_or_none_is_refused(tmp_path):
    path = written(tmp_path)
    with pytest.raises(CorruptFileError, match="differs from the written file"):
        read(path, "cd" * 32)
    with pytest.raises(CorruptFileError, match="is missing or truncated"):
        read(tmp_path / "missing.safetensors", KEY)


def test_a_full_disk_is_found_before_anything_is_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left on device"):
        Writer(tmp_path, "teacher", {"logits": TensorSpec(torch.float32, (1000, 10))})
    assert names(tmp_path) == []


def test_a_file_system_that_cannot_take_space_at_once_does_without(tmp_path, monkeypatch):
    def cannot(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", cannot)
    assert torch.equal(read(written(tmp_path), KEY)["logits"], TENSORS["logits"])


def test_a_file_is_whole_or_not_there(tmp_path):
    """Until it is finished; and whoever has the old one open keeps it."""
    path = written(tmp_path)
    old = read(path, KEY)
    others = {name: value.flip(0) for name, value in TENSORS.items()}
    writer = Writer(tmp_path, "teacher", {name: TensorSpec(value.dtype, value.shape) for name, value in others.items()})
    for name, value in others.items():
        writer.put(name, 0, value)
        assert torch.equal(read(path, KEY)["index"], TENSORS["index"])
    writer.finish(path, KEY)
    assert torch.equal(read(path, KEY)["index"], others["index"])
    assert torch.equal(old["index"], TENSORS["index"])


def test_what_is_given_up_or_was_killed_leaves_nothing_behind(tmp_path):
    specs = {"logits": TensorSpec(torch.float32, (10, 10))}
    Writer(tmp_path, "teacher", specs).discard()
    assert names(tmp_path) == []
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    ).stdout.strip()
    left = Writer(tmp_path, "teacher", specs)
    left.stream.close()
    killed = left.file.temporary.rename(left.file.temporary.with_suffix(f".{dead}")).name
    elsewhere, other, living = (
        killed.replace(socket.gethostname(), "elsewhere"),
        killed.replace("teacher", "another"),
        f"{killed.rpartition('.')[0]}.{os.getppid()}",
    )
    for name in (elsewhere, other, living):
        (tmp_path / name).touch()
    Writer(tmp_path, "teacher", specs).discard()
    assert names(tmp_path) == sorted([elsewhere, other, living])


def test_a_tensor_that_the_format_does_not_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"map is torch.complex64, which safetensors cannot hold"):
        Writer(tmp_path, "teacher", {"map": TensorSpec(torch.complex64, (3,))})
    assert names(tmp_path) == []
