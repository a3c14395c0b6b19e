"""Atomic file writes: a file is written beside its place, and renamed when it is complete."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path

from kd_lightning.core.errors import UsageError

_REMEDIES = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EIO: "check the disk",
    errno.EROFS: "mount its file system for writing",
}
"""Remedies of errors that only a write can have."""
_own_temporaries: set[Path] = set()


class WriteError(UsageError, OSError):
    """A file cannot be written; the message is one line with the file, the system's reason and the remedy.

    Args:
        path: The file.
        error: The system's error.
        elsewhere: How to write to another directory.

    Attributes:
        reason: The system's reason, such as ``No space left on device``.
    """

    def __init__(self, path: str | os.PathLike[str], error: OSError, elsewhere: str) -> None:
        remedy = _REMEDIES.get(error.errno or 0, "make its directory writable")
        self.reason = error.strerror or str(error)
        super().__init__(f"{path} cannot be written ({self.reason}): {remedy}, or {elsewhere}")
        self.errno = error.errno


class AtomicFile:
    """A binary file under a temporary name, until `commit` renames it.

    A reader sees the old file or the whole new one, even after a crash. A killed process leaves its temporary file,
    which the next write of the same name on this machine removes.

    Args:
        directory: Directory of the temporary file; created if missing. The final path must be on the same disk.
        name: Name that identifies the temporary file; often that of the final path.
        elsewhere: How to write to another directory, which ends the message of an error.

    Raises:
        WriteError: The directory is not writable.
    """

    def __init__(self, directory: Path, name: str, elsewhere: str = "write to another directory") -> None:
        self.elsewhere = elsewhere
        self.path = directory / name
        self.temporary = directory / f".{name}.{socket.gethostname()}.{os.getpid()}"
        try:
            _create(directory)
            remove_leftovers(directory, name)
            # exclusive: a symbolic link of this name is not followed
            number = os.open(self.temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
        except OSError as error:
            raise WriteError(self.path, error, elsewhere) from error
        self.stream = os.fdopen(number, "w+b")
        _own_temporaries.add(self.temporary)

    def commit(self, path: Path) -> None:
        """Flush the file to the disk, rename it, and flush the directory, so that the new name outlives a power cut.

        Raises:
            WriteError: The disk is full, or the path cannot be replaced.
        """
        try:
            self.stream.flush()
            os.fsync(self.stream.fileno())
            self.stream.close()
            self.temporary.replace(path)
        except OSError as error:
            raise WriteError(path, error, self.elsewhere) from error
        _own_temporaries.discard(self.temporary)
        _sync_directory(path.parent)

    def discard(self) -> None:
        """Remove the temporary file; does nothing after `commit`."""
        with suppress(OSError):  # closing flushes, which fails again on a full disk
            self.stream.close()
        if self.temporary in _own_temporaries:
            with suppress(OSError):  # the directory is gone or read-only, which the caller's error tells
                self.temporary.unlink(missing_ok=True)
            _own_temporaries.discard(self.temporary)


@contextmanager
def atomic_write(path: Path, elsewhere: str = "write to another directory") -> Generator[BufferedRandom]:
    """Open a file for writing that replaces `path` when the block ends, and never if it raises.

    Args:
        path: The file; its directory is created if missing. A symbolic link is replaced, and not followed.
        elsewhere: How to write to another directory, which ends the message of an error.

    Raises:
        WriteError: The directory is not writable, or the disk is full.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "numbers.txt"
        ...     with atomic_write(path) as stream:
        ...         _ = stream.write(b"1 2 3")
        ...     path.read_text()
        '1 2 3'
    """
    file = AtomicFile(path.parent, path.name, elsewhere)
    try:
        yield file.stream
        file.commit(path)
    except OSError as error:
        if isinstance(error, WriteError) or error.errno not in _REMEDIES:
            raise
        raise WriteError(path, error, elsewhere) from error
    finally:
        file.discard()


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file that replaces `path` in one step.

    Raises:
        WriteError: The directory is not writable, or the disk is full.
    """
    with atomic_write(path) as stream:
        stream.write(text.encode())


def remove_leftovers(directory: Path, name: str = "*") -> None:
    """Remove temporary files whose process on this machine no longer runs.

    Args:
        directory: A directory that `AtomicFile` wrote to.
        name: The name that was given to `AtomicFile`; all names by default.
    """
    if os.name != "posix":  # only there does signal 0 test for a process without an effect
        return
    for path in directory.glob(f".{name}.{socket.gethostname()}.*"):
        pid = path.name.rpartition(".")[2]
        try:
            if int(pid) == os.getpid():  # of a process that had this number before, or being written
                if path not in _own_temporaries:
                    path.unlink(missing_ok=True)
                continue
            os.kill(int(pid), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (OSError, ValueError):  # another user's process, so a running one; or not one of these files
            continue


def _create(directory: Path) -> None:
    if not directory.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        _sync_directory(directory.parent)


def _sync_directory(directory: Path) -> None:
    """Flush a directory's entries to the disk, on systems and file systems that can."""
    with suppress(OSError):
        number = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
