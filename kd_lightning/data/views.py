"""Digits in several modalities: the same sample, seen in more than one way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.data.mnist import MNISTDataModule
from kd_lightning.data.tensors import Augmentation, Batch, EvaluationLoader, TrainLoader

View = Callable[[Tensor], Any] | nn.Module
"""Images (N, C, H, W) in [0, 1] to what a network of another modality sees of them, (N, ...). A module that has
``of_samples`` is asked for that instead, with images, labels, index and whether it is for a test: what it shows is the
sample's and not made of its image."""


class EdgeMap(nn.Module):
    """How steep the image is at each place, as a depth sensor sees edges and no surfaces.

    |grad x| by Sobel's two filters, divided by 4, its largest value for an image in [0, 1] along an axis.

    Shapes:
        Input and output (N, C, H, W).

    Example:
        >>> step = torch.tensor([[[[0.0, 0.0, 1.0, 1.0]]]]).expand(1, 1, 4, 4)
        >>> EdgeMap()(step)[0, 0, 1]
        tensor([0., 1., 1., 0.])
    """

    def forward(self, images: Tensor) -> Tensor:
        """The edges."""
        across = images.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 4
        n, c, h, w = images.shape
        padded = functional.pad(images.reshape(n * c, 1, h, w), (1, 1, 1, 1), mode="replicate")
        slopes = functional.conv2d(padded, torch.stack((across, across.T)).unsqueeze(1))
        return torch.linalg.vector_norm(slopes, dim=1).view(n, c, h, w)


class Rows(nn.Module):
    """The image as a sequence of its rows, from the top: what a recurrent network reads.

    Shapes:
        Input (N, C, H, W), of which the first channel is read; output (N, H, W).
    """

    def forward(self, images: Tensor) -> Tensor:
        """The rows."""
        return images[:, 0]


class InViews:
    """A loader of images whose batches are shown in several modalities; where it stands is the loader's own affair."""

    def __init__(self, loader: TrainLoader | EvaluationLoader, show: Callable[[Batch], dict[str, Tensor]]) -> None:
        self.loader = loader
        self.show = show

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return map(self.show, self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["loader"], name)  # its rows, its data


class TrainingInViews(InViews):
    """The same of a loader that says where it stands; Lightning looks for the two by name, on the class."""

    loader: TrainLoader

    def state_dict(self) -> dict[str, int]:
        """The loader's."""
        return self.loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """The loader's."""
        self.loader.load_state_dict(state_dict)


class ViewsDataModule(MNISTDataModule, ABC):
    """MNIST's loaders, whose batches are mappings of views; a data module says what a batch is shown as."""

    @cached_property
    def _moved(self) -> dict[int, Tensor]:
        return {}

    def teardown(self, stage: str) -> None:
        """As for MNIST."""
        self._moved.clear()
        super().teardown(stage)

    @property
    def example_input_array(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """None, for which view the network sees is the scheme's to say."""
        return None

    def train_rows(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, rank: int = 0, world_size: int = 1, batch_size: int | None = None, view: int | None = None
    ) -> InViews:
        """As for MNIST, in all views; labels are there."""
        return InViews(super().train_rows(rank, world_size, batch_size, view), self._views_of)

    def train_dataloader(self) -> TrainingInViews:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As for MNIST, in all views, as training is to see them."""
        return TrainingInViews(super().train_dataloader(), self._train_views)

    def val_dataloader(self) -> InViews | list[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As for MNIST, in all views."""
        loader = super().val_dataloader()
        return loader if isinstance(loader, list) else InViews(loader, self._val_views)

    def test_dataloader(self) -> InViews:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As for MNIST, in all views."""
        return InViews(super().test_dataloader(), self._test_views)

    @abstractmethod
    def _views_of(self, batch: Batch) -> dict[str, Any]:
        """What a batch is shown as."""

    def _train_views(self, batch: Batch) -> dict[str, Any]:
        """What it is shown as in training."""
        return self._views_of(batch)

    def _val_views(self, batch: Batch) -> dict[str, Any]:
        """What it is shown as in validation."""
        return self._views_of(batch)

    def _test_views(self, batch: Batch) -> dict[str, Any]:
        """What it is shown as in a test."""
        return self._views_of(batch)

    def _beside(self, tensor: Tensor, batch: Batch) -> Tensor:
        """What every batch needs, on the device of its images, where it stays till `teardown`."""
        device = batch[0].device
        if tensor.device == device:
            return tensor
        if id(tensor) not in self._moved:
            self._moved[id(tensor)] = tensor.to(device)
        return self._moved[id(tensor)]


class PairedViewsDataModule(ViewsDataModule):
    """MNIST, each digit in several modalities at once: what `kd_lightning.schemes.CrossModalDistiller` learns from.

    A batch is a mapping of the modalities, ``target`` and ``index``. Images, their order and the other arguments are
    those of `MNISTDataModule`; a modality is a function of a batch's images, such as `EdgeMap` and `Rows`, or something
    that its samples have besides, such as `SpokenDigits` and `NumberWords`.

    Args:
        modalities: What there is beside ``image``, the digits themselves, by name.
        shuffled: A modality that is given to the wrong samples in training: each gets that of the one before in the
            batch. With it nothing pairs, and a student can learn no more than what holds of all samples.
        batch_size: Training samples a batch, on each process.
        train_size: Samples to train on; all that are not held out if not given.
        val_size: Samples to hold out for validation; with 0 there is none.
        seed: Chooses the samples, their order and what the augmentation draws.
        augmentation: Applied to each training image by itself, before the views are made of it.
        drop_last: Leave out what is left of a pass after the last full global batch; of no effect with `epoch_steps`.
        epoch_steps: Full batches in an epoch; without it, an epoch is one pass.
        eval_batch_size: At most this many samples a batch outside training, on each process.
        channels: How often the one channel of the image is shown.
        views: In how many ways the augmentation shows an image.

    Raises:
        UsageError: A modality has the name of something else, or `shuffled` is none of them; or as for MNIST.

    Example:
        >>> data = PairedViewsDataModule({"edges": EdgeMap(), "rows": Rows()})
        >>> batch = next(iter(data.test_dataloader()))
        >>> {name: tuple(view.shape) for name, view in batch.items()}
        {'image': (250, 3, 28, 28), 'edges': (250, 3, 28, 28), 'rows': (250, 28, 28), 'target': (250,), 'index': (250,)}
    """

    def __init__(
        self,
        modalities: dict[str, View],
        shuffled: str | None = None,
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
        if taken := {"image", "target", "index"} & set(modalities):
            raise UsageError(f"a modality cannot be called {', '.join(sorted(taken))}, which the batch has: rename it")
        known = ["image", *modalities]
        if shuffled is not None and shuffled not in known:
            nearest = get_close_matches(shuffled, known, n=3, cutoff=0.3) or known
            raise UsageError(f"shuffled={shuffled!r} is no modality; the nearest are {', '.join(nearest)}")
        self.modalities = modalities
        self.shuffled = shuffled
        self.hparams["shuffled"] = shuffled

    def _train_views(self, batch: Batch) -> dict[str, Tensor]:
        views = self._views_of(batch)
        if self.shuffled is not None:
            views[self.shuffled] = views[self.shuffled].roll(1, dims=0)
        return views

    def _test_views(self, batch: Batch) -> dict[str, Tensor]:
        return self._all_views(batch, test=True)

    def _views_of(self, batch: Batch) -> dict[str, Tensor]:
        return self._all_views(batch)

    def _all_views(self, batch: Batch, test: bool = False) -> dict[str, Tensor]:
        x, y, index = batch
        views = {name: _shown(view, batch, test) for name, view in self.modalities.items()}
        return {"image": x} | views | {"target": y, "index": index}


def _shown(view: View, batch: Batch, test: bool) -> Tensor:
    x, y, index = batch
    of_samples = getattr(view, "of_samples", None)
    return view(x) if of_samples is None else of_samples(x, y, index, test)
