"""A write that fails leaves the old file whole, and nothing else."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kd_lightning.cli.errors import is_user_error
from kd_lightning.core.files import AtomicFile, WriteError, atomic_write, remove_leftovers


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


def test_the_file_is_on_the_disk_before_it_has_its_name_and_then_the_name(tmp_path, monkeypatch):
    order: list[str] = []
    synced, renamed = os.fsync, Path.replace

    def sync(number: int) -> None:
        order.append("directory" if stat.S_ISDIR(os.fstat(number).st_mode) else "file")
        synced(number)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append("rename"), renamed(self, to)))
    with atomic_write(tmp_path / "file.bin") as stream:
        stream.write(b"new")
    assert order == ["file", "rename", "directory"]


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
    remove_leftovers(tmp_path)  # of every name
    assert names(tmp_path) == sorted({*kept, "file.bin"} - {f".other.{host}.{dead}"})


def test_files_of_a_dead_process_that_had_this_number_are_removed(tmp_path):
    """In a container the numbers begin at 1 again."""
    leftover, other = (tmp_path / f".{name}.{socket.gethostname()}.{os.getpid()}" for name in ("old", "file.bin"))
    leftover.touch()
    other.touch()
    with atomic_write(tmp_path / "file.bin"):
        remove_leftovers(tmp_path)
        assert names(tmp_path) == [other.name]  # which is being written
    assert names(tmp_path) == ["file.bin"]


def test_symbolic_links_are_not_followed(tmp_path):
    (outside := tmp_path / "outside").write_bytes(b"kept")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file.bin").symlink_to(outside)
    (folder / f".file.bin.{socket.gethostname()}.{os.getpid()}").symlink_to(outside)
    with atomic_write(folder / "file.bin") as stream:
        stream.write(b"new")
    assert outside.read_bytes() == b"kept"
    assert (folder / "file.bin").read_bytes() == b"new"
    assert not (folder / "file.bin").is_symlink()


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free space there"),
        (errno.EDQUOT, "free space there"),
        (errno.EFBIG, "raise the limit of a file's size (ulimit -f)"),
        (errno.EROFS, "mount its file system for writing"),
    ],
)
def test_the_error_names_the_file_and_the_remedy(number, remedy, tmp_path):
    def write() -> None:
        with atomic_write(tmp_path / "file.bin", "name another --output"):
            raise OSError(number, os.strerror(number))

    with pytest.raises(WriteError) as error:
        write()
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'file.bin'} cannot be written ({os.strerror(number)}): {remedy}")
    assert message.endswith(", or name another --output")
    assert is_user_error(error.value)
    assert names(tmp_path) == []


def test_a_directory_in_the_place_of_the_file_is_one_line(tmp_path):
    (tmp_path / "file.bin").mkdir()
    with (
        pytest.raises(WriteError, match=r"file\.bin cannot be written \(Is a directory\)"),
        atomic_write(tmp_path / "file.bin"),
    ):
        pass
    with pytest.raises(WriteError, match="file cannot be written"), atomic_write(Path("/dev/null/folder/file")):
        pass


def test_other_errors_of_the_block_are_not_changed(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"), atomic_write(tmp_path / "file.bin"):
        (tmp_path / "missing").read_bytes()
