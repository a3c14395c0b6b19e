"""The file of a teacher cache: safetensors, written row by row, and read back only when it is whole."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kd_lightning.core.errors import UsageError

BLANK = "0" * 64
"""Stands in the header, while a digest is computed, for the digest itself."""
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class CorruptFileError(ValueError):
    """A file that is not what was written."""


class Kind(NamedTuple):
    """A tensor that a file is to hold."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return self.dtype.itemsize * math.prod(self.shape)


class Writer:
    """Fills a file row by row beside its place, to which it comes when it is whole.

    The space is taken at once, so that a full disk is found before there is anything to write. Whoever looks sees no
    file or a whole one. What a writer that was killed has left is removed by the next of the same name on this machine.

    Args:
        folder: Made if it is missing.
        name: Of what is being written; the file gets its own when it is finished.
        kinds: The tensors by name.

    Raises:
        OSError: The folder cannot be written to, or has no room.
        UsageError: A tensor is of a dtype that the format does not have.
    """

    def __init__(self, folder: Path, name: str, kinds: Mapping[str, Kind]) -> None:
        # the widest first, so that each begins at a multiple of its own width
        self.kinds = dict(sorted(kinds.items(), key=lambda item: -item[1].dtype.itemsize))
        self.starts: dict[str, int] = {}
        at = 0
        for tensor, kind in self.kinds.items():
            self.starts[tensor] = at
            at += kind.size
        head = self._header(BLANK, BLANK)
        folder.mkdir(parents=True, exist_ok=True)
        _remove_what_was_left(folder, name)
        self.path = folder / f".{name}.{socket.gethostname()}.{os.getpid()}"
        self.stream = self.path.open("w+b")
        self.begins = len(head)
        try:
            self._take(self.begins + at)
        except OSError:
            self.discard()
            raise

    def put(self, name: str, row: int, values: Tensor) -> None:
        """Writes rows of a tensor, from the given one on."""
        kind = self.kinds[name]
        self.stream.seek(self.begins + self.starts[name] + row * (kind.size // kind.shape[0]))
        values = values.detach().cpu().contiguous()
        self.stream.write(values.flatten().view(torch.uint8).numpy().data)  # numpy has no bfloat16

    def finish(self, path: Path, key: str) -> None:
        """Seals the file with its digest, and gives it its name."""
        self.stream.seek(0)
        self.stream.write(self._header(key, BLANK))
        self.stream.flush()
        self.stream.seek(0)
        sealed = self._header(key, hashlib.file_digest(self.stream, "sha256").hexdigest())
        self.stream.seek(0)
        self.stream.write(sealed)
        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.stream.close()
        self.path.replace(path)

    def discard(self) -> None:
        """Removes what is not finished."""
        with suppress(OSError):  # what could not be written when the disk is full is tried again here
            self.stream.close()
        self.path.unlink(missing_ok=True)

    def _take(self, size: int) -> None:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(self.stream.fileno(), 0, size)
                return
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # of file systems that cannot
                    raise
        self.stream.truncate(size)

    def _header(self, key: str, digest: str) -> bytes:
        about: dict[str, object] = {"__metadata__": {"key": key, "sha256": digest}}
        for name, kind in self.kinds.items():
            if kind.dtype not in _NAMES:
                raise UsageError(f"{name} is {kind.dtype}, which no safetensors file holds: keep it in memory")
            start = self.starts[name]
            about[name] = {
                "dtype": _NAMES[kind.dtype],
                "shape": list(kind.shape),
                "data_offsets": [start, start + kind.size],
            }
        text = json.dumps(about, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # so that the data begins at a multiple of eight bytes
        return len(text).to_bytes(8, "little") + text


def read(path: Path, key: str) -> dict[str, Tensor]:
    """The tensors of a file, mapped: what is not looked at is not in memory.

    The whole file is read once, 1.4 GB a second on one core, so that a single bit that is another is found.

    Args:
        path: A file that a `Writer` finished.
        key: What it was written under.

    Raises:
        CorruptFileError: The file is missing, cut off, changed, or was written under another key.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        found = _digest(path, about.get("sha256", ""))
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptFileError(f"{path} is no whole file ({' '.join(str(error).split())[:80]})") from None
    if about.get("key") != key or found != about.get("sha256"):
        raise CorruptFileError(f"{path} is not what was written there")
    return tensors


def _digest(path: Path, sealed_with: str) -> str:
    """SHA-256 of a file, its own digest left blank."""
    total = hashlib.sha256()
    with path.open("rb") as stream:
        length = stream.read(8)
        head = stream.read(int.from_bytes(length, "little"))
        total.update(length + head.replace(sealed_with.encode() or b"?", BLANK.encode()))
        while part := stream.read(1 << 20):
            total.update(part)
    return total.hexdigest()


def _remove_what_was_left(folder: Path, name: str) -> None:
    """Removes what processes of this machine were writing that are there no more."""
    if os.name != "posix":  # elsewhere the question below is no question
        return
    for path in folder.glob(f".{name}.{socket.gethostname()}.*"):
        pid = path.name.rpartition(".")[2]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (OSError, ValueError):  # of another user, and so there; or no file of ours
            continue
