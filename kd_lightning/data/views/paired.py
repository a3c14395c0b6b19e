"""PairedViews: the same samples in several modalities at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from kd_lightning.core.errors import UsageError
from kd_lightning.core.lookup import nearest
from kd_lightning.data.loaders import ImageBatch
from kd_lightning.data.views.base import BatchViews, Part


@runtime_checkable
class SampleView(Protocol):
    """A view computed from a sample's number and label, such as speech, and not from its image alone."""

    def of_samples(self, images: Tensor, labels: Tensor, index: Tensor, test: bool = False) -> Tensor:
        """Return the view (N, ...) of samples.

        Args:
            images: (N, C, H, W) in [0, 1].
            labels: int64 (N,).
            index: The samples' numbers, int64 (N,).
            test: True for samples of the test set, whose numbers also belong to training samples.
        """
        ...


View = Callable[[Tensor], Any] | nn.Module
"""Maps images (N, C, H, W) in [0, 1] to another modality's input (N, ...); or a `SampleView`."""


class PairedViews(BatchViews):
    """Each sample in several modalities at once: the batches of `kd_lightning.schemes.CrossModalDistiller`.

    A batch is a mapping of ``image``, the other modalities, ``target`` and ``index``. A modality is a function of the
    images, such as `EdgeMap` and `RowSequence`, or of the samples, such as `SpokenDigits` and `NumberWords`.

    Args:
        modalities: The modalities besides ``image``, by name.
        shuffled: The modality that is mismatched in training: each sample gets that of the sample before in the batch.
            An ablation: without pairs a student can learn nothing about single samples.

    Raises:
        UsageError: A modality has a name that the batch has already, or `shuffled` is none of them.

    Example:
        >>> from kd_lightning.data import MNIST, EdgeMap, ResidentDataModule, RowSequence
        >>> data = ResidentDataModule(MNIST(), views=PairedViews({"edges": EdgeMap(), "rows": RowSequence()}))
        >>> batch = next(iter(data.test_dataloader()))
        >>> {name: tuple(view.shape) for name, view in batch.items()}
        {'image': (250, 1, 28, 28), 'edges': (250, 1, 28, 28), 'rows': (250, 28, 28), 'target': (250,), 'index': (250,)}
    """

    def __init__(self, modalities: dict[str, View], shuffled: str | None = None) -> None:
        if taken := {"image", "target", "index"} & set(modalities):
            raise UsageError(
                f"a modality cannot have the name {', '.join(sorted(taken))}, a key of the batch: rename it"
            )
        known = ["image", *modalities]
        if shuffled is not None and shuffled not in known:
            raise UsageError(f"shuffled={shuffled!r} is not a modality; the nearest are {nearest(shuffled, known)}")
        self.modalities = modalities
        self.shuffled = shuffled

    def __call__(self, batch: ImageBatch, part: Part) -> dict[str, Any]:
        """Return the image, the other modalities, the target and the index."""
        x, y, index = batch
        views = {name: _view_of(view, batch, part.stage == "test") for name, view in self.modalities.items()}
        return {"image": x} | views | {"target": y, "index": index}

    def in_training(self, views: dict[str, Any]) -> dict[str, Any]:
        """Give each sample the shuffled modality of the sample before it."""
        return views if self.shuffled is None else views | {self.shuffled: views[self.shuffled].roll(1, dims=0)}


def _view_of(view: View, batch: ImageBatch, test: bool) -> Tensor:
    x, y, index = batch
    return view.of_samples(x, y, index, test) if isinstance(view, SampleView) else view(x)
