"""A teacher cache's file: safetensors, written in pieces and sealed with a hash."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.files import AtomicFile

BLANK = "0" * 64
"""Placeholder for the file's hash in the header, while that hash is computed."""
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
    """The content of a file differs from the written one."""


class TensorSpec(NamedTuple):
    """Dtype and shape of a tensor in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """The tensor's size in bytes."""
        return self.dtype.itemsize * math.prod(self.shape)


class Writer:
    """Writes tensors in pieces to a temporary file, which gets its final name when it is complete.

    The space is reserved first, so that a full disk is found before the first write.

    Args:
        directory: Directory of the file; created if missing.
        name: Identifies the temporary file; the final name is given to `finish`.
        specs: The tensors by name.

    Raises:
        OSError: The directory is not writable or the disk is full.
        UsageError: safetensors has no such dtype.
    """

    def __init__(self, directory: Path, name: str, specs: Mapping[str, TensorSpec]) -> None:
        # the widest dtype first, so that each tensor is aligned to its item size
        self.specs = dict(sorted(specs.items(), key=lambda item: -item[1].dtype.itemsize))
        self.offsets: dict[str, int] = {}
        size = 0
        for tensor, spec in self.specs.items():
            self.offsets[tensor] = size
            size += spec.num_bytes
        header = self._header(BLANK, BLANK)
        self.data_start = len(header)
        self.file = AtomicFile(directory, name)
        self.stream = self.file.stream
        try:
            self._reserve(self.data_start + size)
        except OSError:
            self.discard()
            raise

    def put(self, name: str, row: int, values: Tensor) -> None:
        """Write rows of a tensor, beginning with row number `row`."""
        spec = self.specs[name]
        self.stream.seek(self.data_start + self.offsets[name] + row * (spec.num_bytes // spec.shape[0]))
        values = values.detach().cpu().contiguous()
        self.stream.write(values.flatten().view(torch.uint8).numpy().data)  # numpy has no bfloat16

    def finish(self, path: Path, key: str) -> None:
        """Write the header with the key and the file's hash, and rename the file."""
        self.stream.seek(0)
        self.stream.write(self._header(key, BLANK))
        self.stream.flush()
        self.stream.seek(0)
        sealed = self._header(key, hashlib.file_digest(self.stream, "sha256").hexdigest())
        self.stream.seek(0)
        self.stream.write(sealed)
        self.file.commit(path)

    def discard(self) -> None:
        """Remove the temporary file."""
        self.file.discard()

    def _reserve(self, size: int) -> None:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(self.stream.fileno(), 0, size)
                return
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # file systems without preallocation
                    raise
        self.stream.truncate(size)

    def _header(self, key: str, sha256: str) -> bytes:
        content: dict[str, object] = {"__metadata__": {"key": key, "sha256": sha256}}
        for name, spec in self.specs.items():
            if spec.dtype not in _NAMES:
                raise UsageError(
                    f"the teacher's {name} is {spec.dtype}, which safetensors cannot hold: remove TeacherCache's "
                    "cache_dir"
                )
            start = self.offsets[name]
            content[name] = {
                "dtype": _NAMES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [start, start + spec.num_bytes],
            }
        text = json.dumps(content, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # aligns the data to eight bytes
        return len(text).to_bytes(8, "little") + text


def read(path: Path, key: str) -> dict[str, Tensor]:
    """Map the tensors of a file into memory: only pages that are used are loaded.

    The whole file is hashed once, at 1.4 GB a second on one core, so that one changed bit is found.

    Args:
        path: A file that a `Writer` finished.
        key: The key that was given to `Writer.finish`.

    Raises:
        CorruptFileError: The file is missing, truncated, changed, or has another key.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        found = _file_hash(path, metadata.get("sha256", ""))
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptFileError(f"{path} is missing or truncated ({' '.join(str(error).split())[:80]})") from None
    if metadata.get("key") != key or found != metadata.get("sha256"):
        raise CorruptFileError(f"{path} differs from the written file")
    return tensors


def _file_hash(path: Path, sealed_with: str) -> str:
    """Compute the SHA-256 of a file with its own hash in the header blanked."""
    total = hashlib.sha256()
    with path.open("rb") as stream:
        length = stream.read(8)
        header = stream.read(int.from_bytes(length, "little"))
        total.update(length + header.replace(sealed_with.encode() or b"?", BLANK.encode()))
        while part := stream.read(1 << 20):
            total.update(part)
    return total.hexdigest()
