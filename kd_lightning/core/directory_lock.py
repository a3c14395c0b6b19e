"""A lock that keeps a second process out of a directory; it ends with its process, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from kd_lightning.core.errors import UsageError
from kd_lightning.core.files import WriteError, remove_leftovers

try:
    import fcntl
except ImportError:  # Windows has no flock: directories are not locked there
    fcntl = None

NAME = ".lock"
"""The file that is locked, in the directory; it is removed when the lock is released."""


class _Held(NamedTuple):
    """A lock of this process."""

    descriptor: int
    users: int


_held: dict[Path, _Held] = {}


class DirectoryLock:
    """Keep every other process out of a directory while this one writes there.

    The lock is ``flock``'s: the system releases it when the process ends, after SIGKILL as well, and closing other
    descriptors of the file does not. Forked processes, such as workers of a loader, close theirs at once, so that they
    cannot hold it longer than their parent. A process that was started with `multiprocessing` belongs to the run of
    its parent and passes; several locks of one directory in one process are one.

    On a network file system the lock holds between machines where the server supports it (NFS from version 4 on, unless
    mounted with ``local_lock``), and else only between the processes of one machine; without any support for locks
    the directory is not locked.

    Args:
        directory: The directory; created if missing, and then removed on release if nothing was written there.
        what: The process's work there, for the message, such as ``a run``.
        elsewhere: How to name another directory, which ends the message.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with DirectoryLock(folder, "a run", "name another directory"):
        ...         (Path(folder) / NAME).exists()
        True
    """

    def __init__(self, directory: str | Path, what: str, elsewhere: str) -> None:
        self.directory = Path(directory)
        self.what = what
        self.elsewhere = elsewhere
        self.is_held = False
        self.is_created = False

    def acquire(self) -> None:
        """Take the lock, and remove temporary files that dead processes have left in the directory.

        Raises:
            UsageError: Another process holds it; the message names that process.
            WriteError: The directory is not writable.
        """
        if fcntl is None or self.is_held:
            return
        key = self._key()
        if key in _held:
            _held[key] = _held[key]._replace(users=_held[key].users + 1)
            self.is_held = True
            return
        try:
            self.is_created = not self.directory.is_dir()
            descriptor = self._lock()
        except OSError as error:
            raise WriteError(self.directory, error, self.elsewhere) from error
        if descriptor is not None:
            _held[key] = _Held(descriptor, 1)
            self.is_held = True
        remove_leftovers(self.directory)

    def release(self) -> None:
        """Release the lock and remove its file; does nothing if it is not held."""
        if not self.is_held:
            return
        self.is_held = False
        key = self._key()
        held = _held.pop(key, None)
        if held is None:  # in a forked process
            return
        if held.users > 1:
            _held[key] = held._replace(users=held.users - 1)
            return
        with suppress(OSError):  # before the lock is released: then the file may be another process's
            (self.directory / NAME).unlink()
            if self.is_created:
                self.directory.rmdir()  # fails, as it should, if it is not empty
        os.close(held.descriptor)

    def __enter__(self) -> DirectoryLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _key(self) -> Path:
        return self.directory.resolve()

    def _lock(self) -> int | None:
        """Lock the file, and write this process's number and host into it; None if the file system has no locks."""
        assert fcntl is not None
        path = self.directory / NAME
        while True:
            self.directory.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            except FileNotFoundError:  # the process that held the lock has removed the directory since
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 300).decode(errors="replace").split()
                os.close(descriptor)
                if holder and holder[0] == str(getattr(multiprocessing.parent_process(), "pid", None)):
                    return None
                raise self._refusal(holder) from None
            except OSError:  # a file system without locks
                os.close(descriptor)
                return None
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    break
            os.close(descriptor)  # the process that held it has removed the file since
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode())
        return descriptor

    def _refusal(self, holder: list[str]) -> UsageError:
        who = f"process {holder[0]} on {holder[1]}" if len(holder) > 1 else "another process"
        return UsageError(f"{self.directory}: {who} has {self.what} there: wait for its end, or {self.elsewhere}")


def release_all() -> None:
    """Release all locks of this process, which is about to exit without the end of its blocks, and remove their files.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     DirectoryLock(folder, "a run", "name another directory").acquire()
        ...     release_all()
        ...     (Path(folder) / NAME).exists()
        False
    """
    for directory, held in list(_held.items()):
        with suppress(OSError):
            (directory / NAME).unlink()
        os.close(held.descriptor)
    _held.clear()


def _close_in_child() -> None:
    for held in _held.values():
        with suppress(OSError):
            os.close(held.descriptor)  # the lock stays with the parent, whose descriptor is open
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
