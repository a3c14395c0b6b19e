from __future__ import annotations

import gzip
import re
import shutil

import pytest
import torch

from kd_lightning.data.sources.idx import read_labeled_images
from kd_lightning.data.sources.mnist import PACKAGED, PUBLISHED_MD5


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_what_was_written(split, zipped: bool):
    if not zipped:
        for path in (split.images_path, split.labels_path):
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()
    images, labels = read_labeled_images(split.directory, "train", 10)
    assert images.dtype == torch.uint8
    assert torch.equal(images, split.images.view(50, 1, 28, 28))
    assert labels.dtype == torch.int64
    assert labels.tolist() == split.labels.tolist()


def flip_a_byte(split):
    content = bytearray(split.images_path.read_bytes())
    content[len(content) // 2] ^= 0x10
    split.images_path.write_bytes(content)


def truncate(split):
    split.images_path.write_bytes(split.images_path.read_bytes()[:-1000])


def truncate_before_zipping(split):
    split.images_path.write_bytes(gzip.compress(split.encode(split.images)[:-1]))


def append(split):
    split.labels_path.write_bytes(gzip.compress(split.encode(split.labels) + b"\0"))


def lose_a_label(split):
    split.labels = split.labels[:-1]
    split.write()


def mislabel(split):
    split.labels[7] = 200
    split.write()


def blank(split):
    split.images.zero_()
    split.write()


def empty_the_set(split):
    split.images, split.labels = split.images[:0], split.labels[:0]
    split.write()


def empty_the_file(split):
    split.images_path.write_bytes(b"")


def swap(split):
    shutil.copy(split.labels_path, split.images_path)


def web_page(split):
    split.images_path.write_bytes(b"<!DOCTYPE html><title>404</title>")


def pointer(split):
    split.images_path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def remove(split):
    split.images_path.unlink()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (flip_a_byte, "train-images-idx3-ubyte.gz is corrupt"),
        (truncate, "train-images-idx3-ubyte.gz is corrupt"),
        (truncate_before_zipping, "declares [50, 28, 28] bytes but has 39199"),
        (append, "declares [50] bytes but has 51"),
        (lose_a_label, "50 images"),
        (lose_a_label, "49 labels"),
        (mislabel, "has the label 200, but there are 10 classes"),
        (blank, "every pixel in"),
        (empty_the_set, "declares [0, 28, 28] bytes but has 0"),
        (empty_the_file, "is not an IDX file"),
        (swap, "train-images-idx3-ubyte.gz is not an IDX file of bytes in 3 dimensions"),
        (web_page, "train-images-idx3-ubyte.gz is corrupt (Not a gzipped file"),
        (pointer, "train-images-idx3-ubyte.gz is corrupt (Not a gzipped file"),
        (remove, "has neither train-images-idx3-ubyte.gz nor train-images-idx3-ubyte"),
    ],
)
def test_a_fault_is_refused_in_one_line(split, fault, message):
    fault(split)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)) as caught:
        read_labeled_images(split.directory, "train", 10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_one_other_byte_in_a_published_file_is_refused(tmp_path, name):
    """A pixel or a label that is possible, in a file that is whole: only the digest can know."""
    for file in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        shutil.copy(PACKAGED / file, tmp_path)
    read_labeled_images(tmp_path, "t10k", 10, md5=PUBLISHED_MD5)
    content = bytearray(gzip.decompress((tmp_path / f"{name}.gz").read_bytes()))
    content[5000] = (content[5000] + 1) % 10
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=1))
    with pytest.raises(
        ValueError, match=rf"{name}.gz is not the published file \(md5 [0-9a-f]+, published {PUBLISHED_MD5[name]}"
    ):
        read_labeled_images(tmp_path, "t10k", 10, md5=PUBLISHED_MD5)
