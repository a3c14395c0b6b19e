"""BatchViews: a batch of images turned into a mapping of different networks' inputs for the same samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from torch import Tensor

from kd_lightning.data.loaders import EvaluationLoader, ImageBatch, TrainLoader
from kd_lightning.data.sources.base import LabeledImages


class Part(NamedTuple):
    """The set that a batch is from; its tensors are on the device of the batches."""

    stage: Literal["train", "val", "test"]
    """The stage of the set."""
    data: LabeledImages
    """The resident images and labels that the rows index."""
    rows: Tensor
    """int64 (M,): the rows of the set."""


class BatchViews(ABC):
    """Turns a batch ``(x, y, index)`` into a mapping of views, with ``target`` and ``index``.

    In a subclass, a sample's views are functions of the sample alone, in any batch. `in_training` may change training
    batches: shuffle pairs, drop labels.
    """

    @abstractmethod
    def __call__(self, batch: ImageBatch, part: Part) -> dict[str, Any]:
        """Return the views of a batch.

        Args:
            batch: Images (N, C, H, W) in [0, 1], labels (N,) and row numbers (N,).
            part: The set of the batch.
        """

    def in_training(self, views: dict[str, Any]) -> dict[str, Any]:
        """Change the views of a training batch; unchanged by default."""
        return views


class ViewLoader:
    """A loader of images with batches in views.

    Args:
        loader: Yields ``(x, y, index)``.
        transform: Turns a batch into a mapping of views.
    """

    def __init__(
        self, loader: EvaluationLoader | TrainLoader, transform: Callable[[ImageBatch], dict[str, Any]]
    ) -> None:
        self.loader = loader
        self.transform = transform

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.transform, self.loader)


class EvaluationViewLoader(ViewLoader):
    """A `ViewLoader` of an `EvaluationLoader`."""

    loader: EvaluationLoader

    @property
    def num_rows(self) -> int:
        """Number of rows of this share."""
        return self.loader.num_rows


class TrainViewLoader(ViewLoader):
    """A `ViewLoader` of a `TrainLoader`, with its state: Lightning looks for the two methods on the class."""

    loader: TrainLoader

    def state_dict(self) -> dict[str, int]:
        """The position of the loader."""
        return self.loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Resume the loader at the saved position."""
        self.loader.load_state_dict(state_dict)
