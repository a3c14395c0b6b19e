"""Labels predicted by a trained network: data distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from kd_lightning.core.activations import logits_of
from kd_lightning.core.errors import UsageError
from kd_lightning.core.files import atomic_write
from kd_lightning.core.hashing import weights_hash
from kd_lightning.core.network_call import run
from kd_lightning.data.affine import Affine
from kd_lightning.data.sources.base import LabeledImages, Source
from kd_lightning.data.split import TrainingRequest, TrainingSplit, split_rows

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
"""The nine transformations whose predictions are averaged, unless others are given."""


class PseudoLabels(Source):
    """Another source with few labeled training images; a network's ensembled predictions label the others.

    The pseudo-label of an image is the class of the largest probability, of the mean over its transformations of the
    labeler's softmax. Ilija Radosavovic, Piotr Dollar, Ross Girshick, Georgia Gkioxari, Kaiming He: Data Distillation:
    Towards Omni-Supervised Learning. CVPR 2018 (arXiv:1712.04440).

    The first fit writes the predictions to a file, and later ones read it. Validation and test images keep their own
    labels, and so do the `num_labeled` images that a data module with this `train_size` trains on.

    Args:
        source: The images, and the labels that are known.
        labeler: Network that returns logits of images in [0, 1]; not needed if the file exists.
        file: The predictions: ``index`` int64 (R,) and ``probabilities`` float32 (R, num_classes); without it,
            ``pseudo_labels.safetensors`` in the run directory.
        num_labeled: Number of training images that keep their own label.
        transformations: Functions of images (N, C, H, W) in [0, 1]; `TRANSFORMATIONS` if not given.
        threshold: Images whose largest probability is lower are excluded from training.

    Raises:
        UsageError: An argument is out of its range, or the file has other images or another labeler.
        UsageError: There is neither file nor labeler.

    Example:
        >>> from kd_lightning.data import MNIST
        >>> PseudoLabels(MNIST(), file="runs/pseudo_labels.safetensors", num_labeled=100).num_classes
        10
    """

    def __init__(
        self,
        source: Source,
        labeler: nn.Module | None = None,
        file: str | Path | None = None,
        num_labeled: int = 100,
        transformations: list[nn.Module] | None = None,
        threshold: float = 0.0,
    ) -> None:
        if not 0 <= threshold < 1:
            raise UsageError(f"threshold={threshold} must lie in [0, 1)")
        if num_labeled < source.num_classes:
            raise UsageError(f"num_labeled={num_labeled} must be at least {source.num_classes}, one of each class")
        self.source = source
        self.labeler = labeler
        self.file = file
        self.num_labeled = num_labeled
        self.transformations = [*TRANSFORMATIONS] if transformations is None else transformations
        self.threshold = threshold
        self.num_classes = source.num_classes
        self.image_shape = source.image_shape
        self.num_train = source.num_train

    def train(self) -> LabeledImages:
        """The other source's training set, with its own labels."""
        return self.source.train()

    def test(self) -> LabeledImages:
        """The other source's test set."""
        return self.source.test()

    def prepare(self, request: TrainingRequest | None) -> None:
        """Predict the classes of all training images without a label, and write the probabilities to the file."""
        self.source.prepare(request)
        if request is None or (path := self._path(request)).exists():
            return
        if self.labeler is None:
            raise UsageError(f"file={str(path)!r} does not exist, and there is no labeler to write it: give one")
        index = self._rows(request)[1]
        images = self.source.train().images[index]
        probabilities = ensembled_probabilities(
            self.labeler.to(request.device), images, self.transformations, request.num_channels
        )
        tensors = {"index": index, "probabilities": probabilities}
        with atomic_write(path) as stream:
            stream.write(save(tensors, {"labeler": weights_hash(self.labeler)}))

    def split(self, request: TrainingRequest) -> TrainingSplit:
        """Return the labeled and pseudo-labeled training rows, and the validation rows, split by true labels."""
        labeled, unlabeled, val = self._rows(request)
        probabilities = self._read(request, unlabeled)
        labels = self.source.train().labels.clone()
        labels[unlabeled] = probabilities.argmax(dim=1)
        rows = torch.cat((labeled, unlabeled[probabilities.amax(dim=1) >= self.threshold]))
        if request.classes is not None:
            rows = rows[torch.isin(labels[rows], torch.tensor(request.classes))]
        return TrainingSplit(labels, rows.sort().values, val)

    def _rows(self, request: TrainingRequest) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows that keep their label, those that get a pseudo-label, and the validation rows."""
        if self.num_labeled > (request.train_size or self.num_labeled):
            raise UsageError(f"num_labeled={self.num_labeled} must be no more than train_size={request.train_size}")
        labels = self.source.train().labels
        labeled, val = split_rows(labels, self.num_labeled, request.val_size, request.seed)
        rows, _ = split_rows(labels, request.train_size, request.val_size, request.seed)
        return labeled, rows[~torch.isin(rows, labeled)], val

    def _read(self, request: TrainingRequest, unlabeled: Tensor) -> Tensor:
        path = self._path(request)
        found = load_file(path)
        with safe_open(path, "pt") as file:
            labeler = (file.metadata() or {}).get("labeler")
        if set(found) != {"index", "probabilities"} or not torch.equal(found["index"], unlabeled):
            raise UsageError(
                f"file={str(path)!r} has labels of other images than those that num_labeled, train_size, val_size and "
                "seed leave unlabeled: name another file, and it will be written"
            )
        if self.labeler is not None and labeler != weights_hash(self.labeler):
            raise UsageError(
                f"file={str(path)!r} was written by another labeler: name another file, and it will be written"
            )
        return found["probabilities"]

    def _path(self, request: TrainingRequest) -> Path:
        return request.folder / "pseudo_labels.safetensors" if self.file is None else Path(self.file)


@torch.no_grad()
def ensembled_probabilities(
    network: nn.Module, images: Tensor, transformations: list[Any], num_channels: int | None = None
) -> Tensor:
    """Average a network's softmax over transformations of each image.

    Args:
        network: Returns logits; it runs in eval mode, and its mode is restored.
        images: uint8 (N, C, H, W).
        transformations: Functions of images (N, C, H, W) in [0, 1].
        num_channels: Channels that a grey image is repeated to; None for its own.

    Returns:
        float32 (N, num_classes), on the CPU.
    """
    training = network.training
    device = next((value.device for value in network.parameters()), images.device)
    network.eval()
    found: list[Tensor] = []
    for some in images.split(500):
        x = some.to(device).float().div(255).expand(-1, num_channels or -1, -1, -1)
        given = [
            cast("Tensor", logits_of(run(network, change(x)))).float().softmax(dim=1) for change in transformations
        ]
        found.append(torch.stack(given).mean(dim=0).cpu())
    network.train(training)
    return torch.cat(found)
