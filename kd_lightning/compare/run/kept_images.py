"""A copy of a group's test images, from which its report shows some."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kd_lightning.compare.plan.artifacts import IMAGES, RunSpec
from kd_lightning.core.batch import target_of
from kd_lightning.core.files import atomic_write
from kd_lightning.core.label_kinds import class_indices
from kd_lightning.core.learner import Learner

MOST_BYTES, LARGEST_SIDE = 32 * 2**20, 64


def keep_test_images(spec: RunSpec, model: Learner, loaders: Any) -> None:
    """Write the test images as bytes into the directory of a run's group, once for each configuration of its data.

    Nothing is written of data that are no images (N, C, H, W) of one or three channels with one class label each, or
    that have several test loaders. Of many images the first are kept, and large ones are made smaller.

    Args:
        spec: The run.
        model: Its learner.
        loaders: The test loader, or several.
    """
    path = spec.run_dir.parents[1] / IMAGES
    data = {**spec.config["data"], "init_args": {**spec.config["data"].get("init_args", {}), "seed": None}}
    key = json.dumps(data, sort_keys=True, default=str)
    if _key_of(path) == key or isinstance(loaders, list | tuple | dict):
        return
    found = _collect(model, loaders)
    if found is not None:
        with atomic_write(path) as stream:
            np.savez_compressed(stream, images=found[0], target=found[1], key=np.array(key))


def _key_of(path: Path) -> str | None:
    try:
        with np.load(path) as saved:
            return str(saved["key"])
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None


@torch.no_grad()
def _collect(model: Learner, loader: Iterable[object]) -> tuple[Any, Any] | None:
    images: list[Tensor] = []
    targets: list[Tensor] = []
    size = 0
    for batch in loader:
        inputs, _, labels = model.split_batch(batch)
        target = labels.get(model.evaluation.label, target_of(labels))
        if not _are_images(inputs) or target is None or len(target) != len(inputs) or target.dim() > 2:
            return None
        pixels = _small(inputs.float().cpu())
        images.append(pixels)
        targets.append(class_indices(target.cpu()))
        size += pixels.numel()
        if size > MOST_BYTES:
            break
    if not images or len({each.shape[1:] for each in images}) > 1:
        return None
    values = torch.cat(images)
    low, high = values.min(), values.max()
    bytes_ = ((values - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8)
    return bytes_.numpy(), torch.cat(targets).numpy()


def _are_images(inputs: object) -> bool:
    return isinstance(inputs, Tensor) and inputs.dim() == 4 and inputs.shape[1] in (1, 3)


def _small(images: Tensor) -> Tensor:
    if images.shape[1] == 3 and torch.equal(images[:, :1].expand_as(images), images):
        images = images[:, :1]  # grey, repeated
    if max(images.shape[2:]) > LARGEST_SIDE:
        scale = LARGEST_SIDE / max(images.shape[2:])
        images = functional.interpolate(images, scale_factor=scale, mode="area")
    return images
