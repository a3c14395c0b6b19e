"""The files that teacher caches share: which one holds what a run needs, written by one process and read by all."""

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

from kd_lightning.speed.teacher_cache.file import CorruptFileError, Kind, Writer, read
from kd_lightning.speed.teacher_cache.lookup_table import Tables, sentinel_row
from kd_lightning.speed.teacher_cache.training_rows import Inputs

SHOWN = "shown."


class CacheDirectory:
    """Finds a file by what it depends on: the teacher and how it is asked, and every row's input.

    Args:
        folder: Where the files are; all processes must see the same.
        trainer: Of the run.
        about: What the teacher's answers depend on, besides what it is shown: plain values.
        limit: Bytes; a file that holds more is mapped, and not read into memory.
    """

    def __init__(self, folder: Path, trainer: Trainer, about: dict[str, Any], limit: float) -> None:
        self.folder = folder
        self.trainer = trainer
        self.about = json.dumps(about, sort_keys=True).encode()
        self.limit = limit
        self.name = f"teacher-{hashlib.sha256(self.about).hexdigest()[:12]}"

    def has_some(self) -> bool:
        """Whether there is a file for this teacher at all, so that it pays to look at the rows."""
        return self.trainer.strategy.broadcast(any(self.folder.glob(f"{self.name}-*")))

    def key(self, inputs: Inputs) -> str:
        """What a file depends on, in one number; the order of the rows, in which processes differ, does not count."""
        total = hashlib.sha256(self.about)
        order = inputs.indices.argsort()
        for part in (inputs.indices, *inputs.fingerprints.split(len(order))):
            total.update(part[order].cpu().numpy().data)
        return total.hexdigest()

    def path(self, key: str) -> Path:
        """The file of a key."""
        return self.folder / f"{self.name}-{key[:16]}.safetensors"

    def find(self, key: str, device: torch.device) -> Tables | None:
        """What the file of a key holds, if there is one and it is whole for every process."""
        tables = None
        if self.path(key).exists():
            try:
                tables = self._read(key, device)
            except CorruptFileError as error:
                rank_zero_warn(f"{error}: the teacher is asked anew")
        return tables if self.trainer.strategy.reduce_boolean_decision(tables is not None) else None

    @contextmanager
    def writing(self, rows: int, kinds: dict[str, Kind]) -> Generator[Writing]:
        """Begins a file of so many rows, in one process; what is not finished when the context closes is removed."""
        writing = Writing(self)
        try:
            writing.begin(rows, kinds)
            yield writing
        finally:
            writing.discard()

    def _read(self, key: str, device: torch.device) -> Tables:
        tensors = read(self.path(key), key)
        shown = {name.removeprefix(SHOWN): table for name, table in tensors.items() if name.startswith(SHOWN)}
        if sum(table.nbytes for table in shown.values()) <= self.limit:
            shown = {layer: table.to(device, copy=True) for layer, table in shown.items()}
        indices, inputs = (tensors[name].to(device, copy=True) for name in ("indices", "fingerprints"))
        return Tables(Inputs(indices, inputs), shown)


class Writing:
    """A file that one process writes; what keeps it from that is an error for all."""

    def __init__(self, folder: CacheDirectory) -> None:
        self.folder = folder
        self.strategy = folder.trainer.strategy
        self.writes = folder.trainer.is_global_zero
        self.writer: Writer | None = None
        self.failure = ""

    def begin(self, rows: int, kinds: dict[str, Kind]) -> None:
        """Takes the space for it."""
        inputs = {"indices": rows, "fingerprints": next(iter(kinds.values())).shape[0] - 1}
        numbers = {name: Kind(torch.int64, (size,)) for name, size in inputs.items()}
        if self.writes:
            with self._noticing():
                tables = {SHOWN + layer: kind for layer, kind in kinds.items()}
                self.writer = Writer(self.folder.folder, self.folder.name, tables | numbers)
                for name, kind in tables.items():
                    self.writer.put(name, kind.shape[0] - 1, sentinel_row(kind))
        self._agree()

    def put(self, layer: str, row: int, values: Tensor) -> None:
        """Writes what the teacher showed at a layer of rows, from the given one on."""
        if self.writer is not None and not self.failure:
            with self._noticing():
                self.writer.put(SHOWN + layer, row, values)

    def finish(self, inputs: Inputs) -> str:
        """Completes the file with what the rows looked like; its key."""
        key = self.folder.key(inputs)
        if self.writer is not None and not self.failure:
            with self._noticing():
                self.writer.put("indices", 0, inputs.indices)
                self.writer.put("fingerprints", 0, inputs.fingerprints)
                self.writer.finish(self.folder.path(key), key)
                self.writer = None
        self._agree()
        return key

    def discard(self) -> None:
        """Removes what is not finished."""
        if self.writer is not None:
            self.writer.discard()

    @contextmanager
    def _noticing(self) -> Generator[None]:
        # raised at once, it would leave the other processes waiting for this one
        try:
            yield
        except (OSError, ValueError) as error:
            self.failure = getattr(error, "strerror", None) or str(error)

    def _agree(self) -> None:
        if failure := self.strategy.broadcast(self.failure):
            raise OSError(
                f"nothing can be written to {self.folder.folder} ({failure}): make room or give TeacherCache another "
                "folder, or none, and it stays in memory"
            )
