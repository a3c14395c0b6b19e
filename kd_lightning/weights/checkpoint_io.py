"""Checkpoint files that a crash cannot tear, and whose damage is found when they are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from typing_extensions import override

from kd_lightning.core.files import atomic_write
from kd_lightning.weights.reading import check_archive, check_version, corrupt

ELSEWHERE = "name another directory with trainer.default_root_dir (of a ModelCheckpoint: dirpath)"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, flushes it to the disk and renames it; checks checksums when it reads one.

    Lightning's own writes to the directory of temporary files and moves the result, which is a copy, and not atomic,
    where that directory is on another file system. Paths with a protocol, such as ``s3://``, are Lightning's matter.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     AtomicCheckpointIO().save_checkpoint({"global_step": 3}, f"{folder}/last.ckpt")
        ...     AtomicCheckpointIO().load_checkpoint(f"{folder}/last.ckpt", weights_only=True)
        {'global_step': 3}
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            WriteError: The disk is full, or the directory is not writable; the former file is unchanged.
        """
        if storage_options is not None or not _is_local(path):
            super().save_checkpoint(checkpoint, os.fspath(path), storage_options)
            return
        with atomic_write(Path(path), ELSEWHERE) as stream:
            kept = _KeepsError(stream)
            torch.save(checkpoint, kept)  # pyright: ignore[reportArgumentType] (it needs `write` and `flush` alone)
            if kept.error is not None:
                raise kept.error

    @override
    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            WeightsError: The file is truncated, a checksum in it does not match, or its version of Lightning cannot be.
        """
        if _is_local(path) and Path(path).is_file():
            check_archive(Path(path))
        try:
            content = super().load_checkpoint(os.fspath(path), map_location, weights_only)
        except (RuntimeError, EOFError) as error:
            if "PytorchStreamReader" not in str(error) and not isinstance(error, EOFError):
                raise
            raise corrupt(path, str(error)) from None
        check_version(content, path)
        return content


class _KeepsError:
    """A stream that keeps the first error of a write, which torch would replace by one of its own archive writer.

    Args:
        stream: The file.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        """Write to the file, or nothing after an error."""
        if self.error is None:
            try:
                self.stream.write(content)
            except OSError as error:
                self.error = error
        return len(content)

    def flush(self) -> None:
        """Do nothing: the file is flushed when it is complete."""


def _is_local(path: str | os.PathLike[str]) -> bool:
    return "://" not in os.fspath(path)
