"""The copy of the test images from which a page shows some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from kd_lightning import Classifier
from kd_lightning.compare.plan.artifacts import RunSpec
from kd_lightning.compare.run.kept_images import LARGEST_SIDE, keep_test_images
from kd_lightning.networks import MLP


def keep(root: Path, images: torch.Tensor, loaders: Any = None, seed: int = 0, **arguments: Any) -> Path:
    """Keeps images of a run; the file, whether it is there or not."""
    config = {"data": {"class_path": "My", "init_args": {"seed": seed} | arguments}}
    spec = RunSpec(root / "group" / "variant" / f"seed-{seed}", config, "", None, {})
    loader = DataLoader(TensorDataset(images, torch.arange(len(images)) % 3), batch_size=4)
    (root / "group").mkdir(exist_ok=True)
    keep_test_images(spec, Classifier(student=MLP(in_features=4, num_classes=3)), loaders or loader)
    return root / "group" / "test_images.npz"


def kept(path: Path) -> tuple[Any, Any]:
    with np.load(path) as saved:
        return saved["images"], saved["target"]


def test_images_become_bytes(tmp_path: Path) -> None:
    images, target = kept(keep(tmp_path, torch.linspace(-1, 1, 6 * 3 * 4).reshape(6, 3, 2, 2)))
    assert images.dtype == np.uint8
    assert (images.shape, images.min(), images.max()) == ((6, 3, 2, 2), 0, 255)
    assert target.tolist() == [0, 1, 2, 0, 1, 2]


def test_grey_images_have_one_channel_and_large_ones_are_made_smaller(tmp_path: Path) -> None:
    grey = torch.rand(4, 1, 2 * LARGEST_SIDE, LARGEST_SIDE).expand(-1, 3, -1, -1)
    images, _ = kept(keep(tmp_path, grey))
    assert images.shape == (4, 1, LARGEST_SIDE, LARGEST_SIDE // 2)


def test_other_seeds_keep_the_images_and_other_data_replace_them(tmp_path: Path) -> None:
    first = kept(keep(tmp_path, torch.rand(4, 1, 2, 2)))[0]
    assert np.array_equal(kept(keep(tmp_path, torch.rand(4, 1, 2, 2), seed=1))[0], first)
    assert len(kept(keep(tmp_path, torch.rand(5, 1, 2, 2), size=5))[0]) == 5
    for damaged in (b"", b"PK damaged"):
        (tmp_path / "group" / "test_images.npz").write_bytes(damaged)
        assert len(kept(keep(tmp_path, torch.rand(5, 1, 2, 2), size=5))[0]) == 5


def test_what_is_no_image_is_not_kept(tmp_path: Path) -> None:
    assert not keep(tmp_path, torch.rand(4, 7)).exists()
    assert not keep(tmp_path, torch.rand(4, 2, 3, 3)).exists(), "two channels"
    assert not keep(tmp_path, torch.rand(0, 1, 3, 3)).exists()
    assert not keep(tmp_path, torch.rand(4, 1, 3, 3), {"letters": []}).exists(), "several loaders"
