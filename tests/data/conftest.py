from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor


class Split:
    """A small data set in the four files' format; any of it can be spoiled before it is written."""

    def __init__(self, directory: Path, name: str, count: int) -> None:
        generator = torch.Generator().manual_seed(count)
        self.directory = directory
        self.images = torch.randint(256, (count, 28, 28), dtype=torch.uint8, generator=generator)
        self.labels = torch.arange(count, dtype=torch.uint8) % 10
        self.images_path = directory / f"{name}-images-idx3-ubyte.gz"
        self.labels_path = directory / f"{name}-labels-idx1-ubyte.gz"

    @staticmethod
    def encode(values: Tensor) -> bytes:
        """IDX from its description: two zeros, 8 for bytes, the dimensions; the sizes, big-endian; the values."""
        header = struct.pack(f">BBBB{values.dim()}I", 0, 0, 8, values.dim(), *values.shape)
        return header + values.numpy().tobytes()

    def write(self) -> Split:
        self.images_path.write_bytes(gzip.compress(self.encode(self.images), compresslevel=1))
        self.labels_path.write_bytes(gzip.compress(self.encode(self.labels), compresslevel=1))
        return self


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """Fifty training images on disk."""
    return Split(tmp_path, "train", 50).write()
