"""IDX, the file format of MNIST and its relatives; a corrupt or wrong file is refused in one line."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.data.sources.base import LabeledImages

PIECE = 2**20


def read_labeled_images(
    directory: str | Path, split: str, num_classes: int, md5: Mapping[str, str] | None = None
) -> LabeledImages:
    """Read ``<split>-images-idx3-ubyte`` and ``<split>-labels-idx1-ubyte``, each gzipped (``.gz``) or not.

    Args:
        directory: The directory of the files.
        split: ``train`` or ``t10k``.
        num_classes: Labels must lie below it.
        md5: MD5 hashes of the *extracted* bytes, by file name without ``.gz``; other files are checked by their
            structure alone.

    Raises:
        FileNotFoundError: A file is missing.
        UsageError: A file is corrupt, is not the published one, or its counts, sizes, labels or pixels are wrong.
    """
    images_path = _find(Path(directory), f"{split}-images-idx3-ubyte")
    labels_path = _find(Path(directory), f"{split}-labels-idx1-ubyte")
    images = _read(images_path, 3, md5 or {})
    labels = _read(labels_path, 1, md5 or {})
    if len(images) != len(labels):
        raise UsageError(
            f"{len(images)} images in {images_path} but {len(labels)} labels in {labels_path}: download both again"
        )
    if (largest := int(labels.max())) >= num_classes:
        raise UsageError(
            f"{labels_path} has the label {largest}, but there are {num_classes} classes: download it again"
        )
    if images.amin() == images.amax():
        raise UsageError(f"every pixel in {images_path} is {int(images.amin())}: download it again")
    return LabeledImages(images.unsqueeze(1), labels.long())


def _find(directory: Path, name: str) -> Path:
    for path in (directory / f"{name}.gz", directory / name):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{directory} has neither {name}.gz nor {name}: name the directory of the four files")


def _read(path: Path, dimensions: int, md5: Mapping[str, str]) -> Tensor:
    """Read one file as a uint8 tensor of its `dimensions`."""
    content = bytearray()  # read in pieces: the tensor shares this memory, without a copy
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            while piece := file.read(PIECE):
                content += piece
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UsageError(f"{path} is corrupt ({str(error).rstrip('.')}): download it again") from error
    published = md5.get(path.name.removesuffix(".gz"))
    if published and (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) != published:
        raise UsageError(f"{path} is not the published file (md5 {found}, published {published}): download it again")
    # two zero bytes, 8 for unsigned bytes, the number of dimensions; then each size, big-endian
    header = 4 + 4 * dimensions
    if content[:4] != bytearray([0, 0, 8, dimensions]) or len(content) < header:
        start = bytes(content[:4])
        raise UsageError(f"{path} is not an IDX file of bytes in {dimensions} dimensions (it starts with {start!r})")
    sizes = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
    if math.prod(sizes) != len(content) - header or not math.prod(sizes):
        raise UsageError(f"{path} declares {sizes} bytes but has {len(content) - header}: download it again")
    return torch.frombuffer(content, dtype=torch.uint8, offset=header).view(sizes)
