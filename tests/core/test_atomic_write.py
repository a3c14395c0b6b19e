"""A write that fails leaves the old file whole, and nothing else."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kd_lightning.core.files import AtomicFile, atomic_write


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_file_and_its_directory_are_created(tmp_path):
    path = tmp_path / "new" / "deep" / "file.bin"
    with atomic_write(path) as stream:
        stream.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert names(path.parent) == ["file.bin"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        with atomic_write(path) as stream:
            stream.write(b"new content")
            stream.flush()
            assert path.read_bytes() == b"old"
        assert path.read_bytes() == b"new content"
        assert reader.read() == b"old"


def test_an_error_in_the_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with atomic_write(path) as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_full_disk_leaves_the_old_file(call, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    if call == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left on device"), atomic_write(path) as stream:
        stream.write(b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


def test_a_disk_that_is_full_while_closing_removes_the_file(tmp_path):
    file = AtomicFile(tmp_path, "file.bin")
    file.stream.close()
    file.stream = Path("/dev/full").open("wb")  # noqa: SIM115 (discard closes it)
    file.stream.write(b"new")
    with pytest.raises(OSError, match="No space left on device"):
        file.commit(tmp_path / "file.bin")
    file.discard()
    assert names(tmp_path) == []


def test_the_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order: list[str] = []
    synced, renamed = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: (order.append("fsync"), synced(number)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append("rename"), renamed(self, to)))
    with atomic_write(tmp_path / "file.bin") as stream:
        stream.write(b"new")
    assert order == ["fsync", "rename"]


def test_files_of_a_killed_process_are_removed_by_the_next_write(tmp_path):
    command = [sys.executable, "-c", "import os; print(os.getpid())"]
    dead = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    host, living = socket.gethostname(), os.getppid()
    kept = [f".file.bin.elsewhere.{dead}", f".file.bin.{host}.{living}", f".other.{host}.{dead}", f".file.bin.{host}.x"]
    for name in (*kept, f".file.bin.{host}.{dead}"):
        (tmp_path / name).touch()
    with atomic_write(tmp_path / "file.bin"):
        pass
    assert names(tmp_path) == sorted([*kept, "file.bin"])
