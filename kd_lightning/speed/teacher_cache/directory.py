"""The files in a cache directory: which one belongs to a run, written by one process and read by all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from kd_lightning.core.files import WriteError
from kd_lightning.speed.teacher_cache.file import CorruptFileError, TensorSpec, Writer, read
from kd_lightning.speed.teacher_cache.lookup_table import LookupTable, sentinel_row
from kd_lightning.speed.teacher_cache.training_rows import RowFingerprints

PREFIX = "teacher."
"""Begins the names of the teacher's activations in a file."""


class CacheDirectory:
    """Finds and writes files, which are named by the teacher's settings and by every row's input.

    Args:
        directory: Directory of the files; all processes must share it.
        trainer: The run's trainer.
        settings: Plain values that the teacher's outputs depend on, the inputs apart.
        limit: Size in bytes above which a file is mapped and not read into memory.
    """

    def __init__(self, directory: Path, trainer: Trainer, settings: dict[str, Any], limit: float) -> None:
        self.directory = directory
        self.trainer = trainer
        self.settings = json.dumps(settings, sort_keys=True).encode()
        self.limit = limit
        self.name = f"teacher-{hashlib.sha256(self.settings).hexdigest()[:12]}"

    def has_candidates(self) -> bool:
        """Return True if a file of this teacher exists, so that fingerprinting the rows may save the pass."""
        return self.trainer.strategy.broadcast(any(self.directory.glob(f"{self.name}-*")))

    def key(self, rows: RowFingerprints) -> str:
        """Hash the settings and all rows, in the order of their indices: processes visit them in other orders."""
        total = hashlib.sha256(self.settings)
        order = rows.indices.argsort()
        for part in (rows.indices, *rows.fingerprints.split(len(order))):
            total.update(part[order].cpu().numpy().data)
        return total.hexdigest()

    def path(self, key: str) -> Path:
        """Return the path of a key's file."""
        return self.directory / f"{self.name}-{key[:16]}.safetensors"

    def load(self, key: str, device: torch.device) -> LookupTable | None:
        """Read the file of a key; None if it is missing or corrupt for any process."""
        table = None
        if self.path(key).exists():
            try:
                table = self._read(key, device)
            except CorruptFileError as error:
                rank_zero_warn(f"{error}: the teacher's outputs are computed again")
        return table if self.trainer.strategy.reduce_boolean_decision(table is not None) else None

    @contextmanager
    def write(self, num_rows: int, specs: dict[str, TensorSpec]) -> Generator[SharedWriter]:
        """Begin a file in one process; an unfinished file is removed when the context closes."""
        writer = SharedWriter(self)
        try:
            writer.start(num_rows, specs)
            yield writer
        finally:
            writer.discard()

    def _read(self, key: str, device: torch.device) -> LookupTable:
        tensors = read(self.path(key), key)
        outputs = {name.removeprefix(PREFIX): table for name, table in tensors.items() if name.startswith(PREFIX)}
        if sum(table.nbytes for table in outputs.values()) <= self.limit:
            outputs = {layer: table.to(device, copy=True) for layer, table in outputs.items()}
        indices, fingerprints = (tensors[name].to(device, copy=True) for name in ("indices", "fingerprints"))
        return LookupTable(RowFingerprints(indices, fingerprints), outputs)


class SharedWriter:
    """A file that the first process writes; its failure raises in every process.

    Args:
        directory: The cache directory.
    """

    def __init__(self, directory: CacheDirectory) -> None:
        self.directory = directory
        self.strategy = directory.trainer.strategy
        self.is_writer = directory.trainer.is_global_zero
        self.writer: Writer | None = None
        self.failure = ""

    def start(self, num_rows: int, specs: dict[str, TensorSpec]) -> None:
        """Create the file and reserve its space."""
        sizes = {"indices": num_rows, "fingerprints": next(iter(specs.values())).shape[0] - 1}
        integers = {name: TensorSpec(torch.int64, (size,)) for name, size in sizes.items()}
        if self.is_writer:
            with self._recording_failure():
                outputs = {PREFIX + layer: spec for layer, spec in specs.items()}
                self.writer = Writer(self.directory.directory, self.directory.name, outputs | integers)
                for name, spec in outputs.items():
                    self.writer.put(name, spec.shape[0] - 1, sentinel_row(spec))
        self._raise_in_all()

    def put(self, layer: str, row: int, values: Tensor) -> None:
        """Write the teacher's outputs at a layer, beginning with row number `row`."""
        if self.writer is not None and not self.failure:
            with self._recording_failure():
                self.writer.put(PREFIX + layer, row, values)

    def finish(self, rows: RowFingerprints) -> str:
        """Complete the file with the rows' fingerprints, and return its key."""
        key = self.directory.key(rows)
        if self.writer is not None and not self.failure:
            with self._recording_failure():
                self.writer.put("indices", 0, rows.indices)
                self.writer.put("fingerprints", 0, rows.fingerprints)
                self.writer.finish(self.directory.path(key), key)
                self.writer = None
        self._raise_in_all()
        return key

    def discard(self) -> None:
        """Remove the file if it is unfinished."""
        if self.writer is not None:
            self.writer.discard()

    @contextmanager
    def _recording_failure(self) -> Generator[None]:
        # raised here, an error would leave the other processes waiting for this one
        try:
            yield
        except (OSError, ValueError) as error:
            self.failure = (
                error.reason if isinstance(error, WriteError) else getattr(error, "strerror", "") or str(error)
            )

    def _raise_in_all(self) -> None:
        if failure := self.strategy.broadcast(self.failure):
            raise OSError(
                f"TeacherCache cannot write to cache_dir={str(self.directory.directory)!r} ({failure}): free space, "
                "name another directory, or remove cache_dir to keep the outputs in memory"
            )
