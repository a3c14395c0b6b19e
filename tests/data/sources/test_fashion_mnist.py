from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kd_lightning import UsageError
from kd_lightning.data import FashionMNIST, ResidentDataModule
from tests.data.conftest import Split

FILES = {"train": 60_000, "t10k": 10_000}


def write(folder: Path, name: str, count: int, size: int = 28, classes: int = 10) -> None:
    """A file of images that are black but for a corner, of the classes in turn; not gzipped, which takes seconds."""
    images = torch.zeros(count, size, size, dtype=torch.uint8)
    images[:, 0, 0] = torch.arange(count) % 251
    labels = (torch.arange(count) % classes).byte()
    (folder / f"{name}-images-idx3-ubyte").write_bytes(Split.encode(images))
    (folder / f"{name}-labels-idx1-ubyte").write_bytes(Split.encode(labels))


def test_whole_files_are_data_like_any_other(tmp_path):
    for name, count in FILES.items():
        write(tmp_path, name, count)
    data = ResidentDataModule(FashionMNIST(tmp_path), num_channels=3, train_size=100)
    data.setup("fit")
    data.setup("test")
    assert data.train_set.labels[data.split[0]].bincount().tolist() == [10] * 10
    x, y, index = next(iter(data.train_dataloader()))
    assert x.shape == (64, 3, 28, 28)
    assert torch.equal((x[:, 0, 0, 0] * 255).round().long(), index % 251)
    assert torch.equal(y, index % 10)
    assert torch.equal(torch.cat([index for _, _, index in data.test_dataloader()]), torch.arange(10_000))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"classes": 1}, "{count:,} images of 28 x 28 in 1 class"),
        ({"classes": 9}, "{count:,} images of 28 x 28 in 9 classes"),
        ({"size": 32}, "{count:,} images of 32 x 32 in 10 classes"),
        ({"count": 1000}, "1,000 images of 28 x 28 in 10 classes"),
    ],
)
def test_files_of_other_images_are_refused_in_one_line(name, changes, found, tmp_path):
    count = FILES[name]
    write(tmp_path, name, **{"count": count} | changes)
    source = FashionMNIST(tmp_path)
    with pytest.raises(UsageError) as caught:
        source.train() if name == "train" else source.test()
    expected = f"expected {count:,} images of 28 x 28 in 10 classes: download the published files again"
    assert str(caught.value) == f"{tmp_path / name}: {found.format(count=count)}; {expected}"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has neither train-images-idx3-ubyte\.gz nor train-images-idx3-ubyte"):
        FashionMNIST(tmp_path).train()
