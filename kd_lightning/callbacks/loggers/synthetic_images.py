"""What a scheme made up, as a picture in TensorBoard."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn import functional

from kd_lightning.core.errors import UsageError


class SyntheticImagesLogger(Callback):
    """Writes images that a scheme drew for its student to TensorBoard, side by side, as ``synthetic_images``.

    The scheme has a method ``synthetic_images(count)``, as `kd_lightning.schemes.DataFreeDistiller`. It is asked at the
    end of every n-th epoch; what it draws at random for that is no part of the training.

    Args:
        images: How many there are in a picture.
        every_n_epochs: Epochs from one picture to the next.

    Raises:
        UsageError: An argument is out of its range; when the fit starts: the scheme has no such method, or there is no
            TensorBoard logger.

    Example:
        >>> SyntheticImagesLogger(images=16, every_n_epochs=5).every_n_epochs
        5
    """

    def __init__(self, images: int = 64, every_n_epochs: int = 1) -> None:
        if images < 1 or every_n_epochs < 1:
            raise UsageError(f"images={images} and every_n_epochs={every_n_epochs} must be at least 1")
        self.images = images
        self.every_n_epochs = every_n_epochs

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses what it could not draw, before anything is trained."""
        if not hasattr(pl_module, "synthetic_images"):
            raise UsageError(
                f"{type(pl_module).__name__} makes no images up for SyntheticImagesLogger to show: drop it"
            )
        if not any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
            found = ", ".join(type(logger).__name__ for logger in trainer.loggers) or "none"
            raise UsageError(f"SyntheticImagesLogger writes images and the logger is {found}: add a TensorBoardLogger")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws, where a picture is due."""
        if (trainer.current_epoch + 1) % self.every_n_epochs or not trainer.is_global_zero:
            return
        scheme: Any = pl_module
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad(), trainer.precision_plugin.forward_context():
            picture = in_a_grid(scheme.synthetic_images(self.images))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("synthetic_images", picture, trainer.global_step)  # pyright: ignore[reportUnknownMemberType]


def in_a_grid(images: Tensor) -> Tensor:
    """A picture (C, H', W') of images (N, C, H, W) in [0, 1], in rows of about as many as there are rows.

    Example:
        >>> in_a_grid(torch.zeros(5, 3, 28, 28)).shape
        torch.Size([3, 60, 90])
    """
    framed = functional.pad(images.float().clamp(0, 1).cpu(), [1, 1, 1, 1], value=0.5)
    across = round(len(framed) ** 0.5 + 0.499)
    missing = -len(framed) % across
    tiles = torch.cat((framed, framed.new_full((missing, *framed.shape[1:]), 0.5)))
    rows = [torch.cat([*row], dim=2) for row in tiles.split(across)]
    return torch.cat(rows, dim=1)
