"""Labels that a teacher gave: data distillation."""

from __future__ import annotations

import math
import os
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.activations import logits_of, run
from kd_lightning.core.errors import UsageError
from kd_lightning.data.idx import LabelledImages
from kd_lightning.data.mnist import MNISTDataModule
from kd_lightning.data.split import split_rows
from kd_lightning.data.tensors import Augmentation
from kd_lightning.networks.digest import digest


class Affine(nn.Module):
    """Images turned, enlarged and moved, all alike.

    Args:
        degrees: Counter-clockwise.
        scale: 2 is twice as large.
        right: Pixels.
        down: Pixels.

    Shapes:
        Input and output (N, C, H, W); what comes in from outside is 0.

    Raises:
        UsageError: A number is not finite, or `scale` is not above 0.

    Example:
        >>> image = torch.zeros(1, 1, 3, 3).index_fill_(3, torch.tensor([1]), 1.0)
        >>> Affine(right=1)(image)[0, 0, 0]
        tensor([0., 0., 1.])
    """

    def __init__(self, degrees: float = 0.0, scale: float = 1.0, right: float = 0.0, down: float = 0.0) -> None:
        super().__init__()
        if not all(map(math.isfinite, (degrees, scale, right, down))) or scale <= 0:
            raise UsageError(
                f"degrees={degrees}, scale={scale}, right={right} and down={down} must be finite, and scale above 0"
            )
        self.degrees = degrees
        self.scale = scale
        self.right = right
        self.down = down

    def forward(self, images: Tensor) -> Tensor:
        """The transformed images."""
        height, width = images.shape[2:]
        cos, sin = (f(math.radians(self.degrees)) / self.scale for f in (math.cos, math.sin))
        # where a place comes from, in units of half an image
        right, down = 2 * self.right / width, 2 * self.down / height
        matrix = images.new_tensor([[cos, -sin, -cos * right + sin * down], [sin, cos, -sin * right - cos * down]])
        grid = functional.affine_grid(matrix.expand(len(images), -1, -1), [*images.shape], align_corners=False)
        return functional.grid_sample(images, grid, align_corners=False)


TRANSFORMATIONS = (
    Affine(),
    Affine(right=2),
    Affine(right=-2),
    Affine(down=2),
    Affine(down=-2),
    Affine(scale=0.9),
    Affine(scale=1.1),
    Affine(degrees=10),
    Affine(degrees=-10),
)
"""What an annotator sees of each digit, unless told otherwise."""


class AnnotatedMNISTDataModule(MNISTDataModule):
    """MNIST of which few digits have a label, and a teacher's ensembled predictions are the labels of the others.

    An image's annotation is the class of the largest probability, of the mean over its transformations of what the
    annotator says. Ilija Radosavovic, Piotr Dollar, Ross Girshick, Georgia Gkioxari, Kaiming He: Data Distillation:
    Towards Omni-Supervised Learning. CVPR 2018 (arXiv:1712.04440). Any scheme may learn from the batches.

    The annotations are written to a file before the first fit, and read from it afterwards.

    Args:
        annotator: Gives logits of images; not needed where the file is there.
        file: Where the annotations are: ``index`` int64 (R,), ``probabilities`` (R, 10); ``annotations.safetensors`` in
            the run's folder if not given.
        labels: Digits with their own label: those that `MNISTDataModule` trains on with this `train_size`.
        transformations: What the annotator sees, each a function of images (N, C, H, W); `TRANSFORMATIONS` if not
            given.
        threshold: Digits whose annotation is less probable are left out.
        batch_size: Training images a batch, on each process.
        train_size: Digits to train on, those with a label among them; all that are not held out if not given.
        val_size: Images to hold out for validation, with labels of their own; with 0 there is none.
        seed: Chooses the images, their order and what the augmentation draws.
        augmentation: Applied to each training image by itself.
        drop_last: Leave out what is left of a pass after the last full global batch; of no effect with `epoch_steps`.
        epoch_steps: Full batches in an epoch; without it, an epoch is one pass.
        eval_batch_size: At most this many images a batch outside training, on each process.
        channels: How often the one channel is shown.
        views: In how many ways the augmentation shows an image.

    Raises:
        UsageError: An argument is out of its range, or the file is of other digits or another annotator.
        FileNotFoundError: There is neither file nor annotator.
    """

    def __init__(
        self,
        annotator: nn.Module | None = None,
        file: str | Path | None = None,
        labels: int = 100,
        transformations: list[nn.Module] | None = None,
        threshold: float = 0.0,
        batch_size: int = 64,
        train_size: int | None = None,
        val_size: int = 5000,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        drop_last: bool = True,
        epoch_steps: int | None = None,
        eval_batch_size: int = 250,
        channels: int = 3,
        views: int | None = None,
    ) -> None:
        super().__init__(
            batch_size,
            train_size,
            val_size,
            seed,
            augmentation,
            drop_last,
            epoch_steps,
            eval_batch_size,
            channels,
            views,
        )
        if not 0 <= threshold < 1:
            raise UsageError(f"threshold={threshold} must lie in [0, 1)")
        if not 10 <= labels <= (train_size or labels):
            raise UsageError(f"labels={labels} must be at least 10 and no more than train_size={train_size}")
        self.file = file
        self.annotator = annotator
        self.labels = labels
        self.transformations = [*TRANSFORMATIONS] if transformations is None else transformations
        self.threshold = threshold
        self.hparams.update({"file": file and str(file), "labels": labels, "threshold": threshold})

    # ---- what Lightning calls

    def prepare_data(self) -> None:
        """Has the annotator look at every digit without a label, on one process, and writes what it says."""
        path = self._path()
        if path.exists():
            return
        if self.annotator is None:
            raise FileNotFoundError(f"file={str(path)!r} is not there, and no annotator to write it: give one")
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        index = self._unlabelled
        probabilities = ensembled(
            self.annotator.to(device), self._true.images[index], self.transformations, self.channels
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        passing = path.with_name(f".{path.name}.{os.getpid()}")
        save_file({"index": index, "probabilities": probabilities}, passing, {"annotator": digest(self.annotator)})
        passing.replace(path)

    # ---- inside

    @cached_property
    def annotations(self) -> dict[str, Tensor]:
        """What is in the file: ``index`` and ``probabilities``."""
        path = self._path()
        found = load_file(path)
        with safe_open(path, "pt") as file:
            by = (file.metadata() or {}).get("annotator")
        if set(found) != {"index", "probabilities"} or not torch.equal(found["index"], self._unlabelled):
            raise UsageError(
                f"file={str(path)!r} annotates other digits than those that labels, train_size, val_size and seed "
                "leave without a label: name another file, and it will be written"
            )
        if self.annotator is not None and by != digest(self.annotator):
            raise UsageError(f"file={str(path)!r} is another annotator's: name another file, and it will be written")
        return found

    @cached_property
    def train_set(self) -> LabelledImages:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The full training set; digits without a label of their own have the annotator's."""
        labels = self._true.labels.clone()
        labels[self.annotations["index"]] = self.annotations["probabilities"].argmax(dim=1)
        return LabelledImages(self._true.images, labels)

    @cached_property
    def split(self) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The rows to train on, labelled and annotated, and those to validate on."""
        sure = self.annotations["probabilities"].amax(dim=1) >= self.threshold
        rows = torch.cat((self._labelled, self.annotations["index"][sure]))
        return rows.sort().values, self._rows(self.train_size)[1]

    def _path(self) -> Path:
        folder = "." if self.trainer is None else self.trainer.default_root_dir
        return Path(folder, "annotations.safetensors") if self.file is None else Path(self.file)

    @cached_property
    def _true(self) -> LabelledImages:
        return self._read("train")

    def _rows(self, size: int | None) -> tuple[Tensor, Tensor]:
        return split_rows(self._true.labels, size, self.val_size, self.seed)

    @cached_property
    def _labelled(self) -> Tensor:
        return self._rows(self.labels)[0]

    @cached_property
    def _unlabelled(self) -> Tensor:
        rows = self._rows(self.train_size)[0]
        return rows[~torch.isin(rows, self._labelled)]


@torch.no_grad()
def ensembled(network: nn.Module, images: Tensor, transformations: list[Any], channels: int = 3) -> Tensor:
    """Probabilities (N, C), the mean over transformations of what a network says of images (N, 1, H, W), uint8."""
    training = network.training
    device = next((value.device for value in network.parameters()), images.device)
    network.eval()
    found: list[Tensor] = []
    for some in images.split(500):
        shown = some.to(device).float().div(255).expand(-1, channels, -1, -1)
        said = [
            cast("Tensor", logits_of(run(network, change(shown)))).float().softmax(dim=1) for change in transformations
        ]
        found.append(torch.stack(said).mean(dim=0).cpu())
    network.train(training)
    return torch.cat(found)
