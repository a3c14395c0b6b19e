"""Atomic file writes: a file is written beside its place, and renamed when it is complete."""

from __future__ import annotations

import os
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path


class AtomicFile:
    """A binary file under a temporary name, until `commit` renames it.

    A reader sees the old file or the whole new one, even after a crash. A killed process leaves its temporary file,
    which the next write of the same name on this machine removes.

    Args:
        directory: Directory of the temporary file; created if missing. The final path must be on the same disk.
        name: Name that identifies the temporary file; often that of the final path.

    Raises:
        OSError: The directory is not writable.
    """

    def __init__(self, directory: Path, name: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(directory, name)
        self.temporary = directory / f".{name}.{socket.gethostname()}.{os.getpid()}"
        self.stream = self.temporary.open("w+b")

    def commit(self, path: Path) -> None:
        """Flush the file to the disk and rename it."""
        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.stream.close()
        self.temporary.replace(path)

    def discard(self) -> None:
        """Remove the temporary file; does nothing after `commit`."""
        with suppress(OSError):  # closing flushes, which fails again on a full disk
            self.stream.close()
        self.temporary.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path) -> Generator[BufferedRandom]:
    """Open a file for writing that replaces `path` when the block ends, and never if it raises.

    Args:
        path: The file; its directory is created if missing.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "numbers.txt"
        ...     with atomic_write(path) as stream:
        ...         _ = stream.write(b"1 2 3")
        ...     path.read_text()
        '1 2 3'
    """
    file = AtomicFile(path.parent, path.name)
    try:
        yield file.stream
        file.commit(path)
    finally:
        file.discard()


def _remove_leftovers(directory: Path, name: str) -> None:
    """Remove temporary files of this name whose process on this machine no longer runs."""
    if os.name != "posix":  # only there does signal 0 test for a process without an effect
        return
    for path in directory.glob(f".{name}.{socket.gethostname()}.*"):
        pid = path.name.rpartition(".")[2]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (OSError, ValueError):  # another user's process, so a running one; or not one of these files
            continue
