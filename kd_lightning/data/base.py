"""SourceDataModule: the base of data modules whose images come from a source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.progress import completed_batches
from kd_lightning.data.checks import check_num_channels, check_whole
from kd_lightning.data.sources.base import LabeledImages, Source, check_resident
from kd_lightning.data.split import TrainingRequest


class SourceDataModule(LightningDataModule, ABC):
    """Base of the data modules of a `Source`: the test set, the batches' device, ranks, and the position of training.

    Args:
        source: The images.
        eval_batch_size: At most this many images a batch outside training, on each process.
        num_channels: Channels that a grey image is repeated to; None for the source's own.
        hyperparameters: Plain values to save in checkpoints, by the arguments' names.

    Raises:
        UsageError: An argument is out of its range, or `source` is not a `Source`.
    """

    def __init__(
        self, source: Source, eval_batch_size: int, num_channels: int | None, hyperparameters: dict[str, Any]
    ) -> None:
        super().__init__()
        if not isinstance(source, Source):  # pyright: ignore[reportUnnecessaryIsInstance]  # users have no type checker
            raise UsageError(f"source={source!r} is not a Source: pass an object such as kd_lightning.data.MNIST()")
        if not hasattr(source, "num_classes"):
            raise UsageError(f"source={type(source).__name__} has no num_classes: set it to the number of its classes")
        check_whole("eval_batch_size", eval_batch_size, least=1)
        check_whole("num_channels", num_channels, least=1, optional=True)
        self.save_hyperparameters(hyperparameters, logger=False)
        self.source = source
        self.eval_batch_size = eval_batch_size
        self.num_channels = num_channels
        self._limit_val_batches: int | float | None = None
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    def __str__(self) -> str:
        given = {"source": type(self.source).__name__} | {name: repr(value) for name, value in self.hparams.items()}
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in given.items())})"

    @cached_property
    def test_set(self) -> LabeledImages:
        """The source's test set."""
        return self._checked(self.source.test(), "test")

    # ---- Lightning hooks

    def prepare_data(self) -> None:
        """Prepare the source, on one process."""
        self.source.prepare(self._training_request())

    def teardown(self, stage: str) -> None:
        """Restore the trainer's validation, and free the device's memory."""
        self._copies.clear()
        if self._limit_val_batches is not None and self.trainer is not None:
            self.trainer.limit_val_batches = self._limit_val_batches
            self._limit_val_batches = None

    def on_exception(self, exception: BaseException) -> None:
        """Restore after a failed fit, in which Lightning does not call `teardown`."""
        self.teardown("fit")

    @abstractmethod
    def test_dataloader(self) -> Any:
        """All rows to test on."""

    def predict_dataloader(self) -> Any:
        """All rows to test on."""
        return self.test_dataloader()

    # ---- for subclasses

    def _training_request(self) -> TrainingRequest | None:
        """Describe the division of the training set; None for a data module that reads no training row."""
        return None

    def _checked(self, data: LabeledImages, split: str) -> LabeledImages:
        """Return the source's images after checking their types, and that `num_channels` is possible."""
        where = f"{type(self.source).__name__}.{split}()"
        check_resident(data, self.source.num_classes, where)
        check_num_channels(self.num_channels, data.images.shape[1], where)
        return data

    def _image_shape(self) -> tuple[int, ...]:
        """Shape (C, H, W) of an image as networks receive it."""
        shape = self.source.image_shape or self.test_set.images.shape[1:]
        return (self.num_channels or shape[0], *shape[1:])

    def _device(self) -> torch.device:
        """The device of the batches."""
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _on_device(self, tensor: Tensor) -> Tensor:
        """Copy a resident tensor to the device of the batches, once until `teardown`."""
        device = self._device()
        if device.type == "cpu":
            return tensor
        if id(tensor) not in self._copies:
            self._copies[id(tensor)] = tensor, tensor.to(device)  # both: an id is unique only while its object exists
        return self._copies[id(tensor)][1]

    def _resident(self, data: LabeledImages) -> LabeledImages:
        return LabeledImages(*map(self._on_device, data))

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _progress(self) -> Callable[[], int] | None:
        """The trainer's number of completed batches; None without a trainer."""
        return None if self.trainer is None else self._completed_batches

    def _completed_batches(self) -> int:
        assert self.trainer is not None
        return completed_batches(self.trainer)

    def _refuse_overfit_batches(self) -> None:
        if overfit_batches := getattr(self.trainer, "overfit_batches", 0):
            raise UsageError(
                f"overfit_batches={overfit_batches} would draw other images in each epoch: set train_size instead"
            )

    def _prepare_validation(self, stage: str, val_size: int) -> None:
        """Suspend or refuse the validation of a data module without validation images."""
        if stage == "validate" and not val_size:
            raise UsageError("val_size=0 leaves no validation images: set val_size, or use test")
        if stage == "fit" and not val_size:
            self._suspend_validation()

    def _suspend_validation(self) -> None:
        """Disable validation by a limit of 0: Lightning warns about an empty or missing loader."""
        if self.trainer is not None:
            self._limit_val_batches = self.trainer.limit_val_batches
            self.trainer.limit_val_batches = 0
