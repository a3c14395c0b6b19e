"""Synthetic images of a scheme as an image in TensorBoard."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn import functional

from kd_lightning.core.errors import UsageError


@runtime_checkable
class MakesImages(Protocol):
    """A scheme that makes images for its student, such as `kd_lightning.schemes.DataFreeDistiller`."""

    def synthetic_images(self, count: int) -> Tensor:
        """Return images (count, C, H, W) in [0, 1]."""
        ...


class SyntheticImagesLogger(Callback):
    """Log images that a scheme has made for its student to TensorBoard, side by side, as ``synthetic_images``.

    The scheme has a method ``synthetic_images(count)``, such as that of `kd_lightning.schemes.DataFreeDistiller`. It is
    called at the end of every n-th epoch; the random numbers that it draws do not change those of the training.

    Args:
        num_images: The number of images side by side.
        every_n_epochs: The number of epochs between two logged images.

    Raises:
        UsageError: An argument is out of its range; at the start of the fit: the scheme has no such method, or there is
            no TensorBoard logger.

    Example:
        >>> SyntheticImagesLogger(num_images=16, every_n_epochs=5).every_n_epochs
        5
    """

    def __init__(self, num_images: int = 64, every_n_epochs: int = 1) -> None:
        if num_images < 1 or every_n_epochs < 1:
            raise UsageError(f"num_images={num_images} and every_n_epochs={every_n_epochs} must be at least 1")
        self.num_images = num_images
        self.every_n_epochs = every_n_epochs

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the scheme and the loggers before training."""
        if not isinstance(pl_module, MakesImages):
            raise UsageError(
                f"{type(pl_module).__name__} makes no synthetic images for SyntheticImagesLogger: remove the callback"
            )
        writes = trainer.fast_dev_run or any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)  # pyright: ignore[reportAttributeAccessIssue]
        if not writes:
            found = ", ".join(type(logger).__name__ for logger in trainer.loggers) or "none"
            raise UsageError(f"SyntheticImagesLogger writes images and the logger is {found}: add a TensorBoardLogger")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log images, in every n-th epoch."""
        if (trainer.current_epoch + 1) % self.every_n_epochs or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, MakesImages)
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad(), trainer.precision_plugin.forward_context():
            grid = image_grid(pl_module.synthetic_images(self.num_images))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("synthetic_images", grid, trainer.global_step)  # pyright: ignore[reportUnknownMemberType]


def image_grid(images: Tensor) -> Tensor:
    """Arrange images (N, C, H, W) in [0, 1] in a nearly square grid, as one image (C, H', W').

    Example:
        >>> image_grid(torch.zeros(5, 3, 28, 28)).shape
        torch.Size([3, 60, 90])
    """
    framed = functional.pad(images.float().clamp(0, 1).cpu(), [1, 1, 1, 1], value=0.5)
    across = round(len(framed) ** 0.5 + 0.499)
    missing = -len(framed) % across
    tiles = torch.cat((framed, framed.new_full((missing, *framed.shape[1:]), 0.5)))
    rows = [torch.cat([*row], dim=2) for row in tiles.split(across)]
    return torch.cat(rows, dim=1)
