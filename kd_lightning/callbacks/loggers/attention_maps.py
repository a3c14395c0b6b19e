"""Attention maps of teacher and student as an image in TensorBoard."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn import functional

from kd_lightning.core.activations import tap
from kd_lightning.core.errors import UsageError
from kd_lightning.schemes import FrozenTeacher


class AttentionMapsLogger(Callback):
    """Log the attention maps of teacher and student side by side to TensorBoard, as the image ``attention``.

    A map (H, W) is the mean of a layer's squared activations over its channels, as in `AttentionTransferLoss`. Each row
    shows an input image and, for each pair of layers, the teacher's map and then the student's, scaled from black to
    white. The inputs are the first of the first validation batch, and so the same each time. It runs in the validation
    of every n-th epoch, has no state and does not change the training.

    Args:
        student: Layers of the student whose activations are maps (N, C, H, W).
        teacher: Layers of the teacher, one for each of the student's.
        num_images: The number of images, at most a batch.
        every_n_epochs: The number of epochs between two logged images.

    Raises:
        UsageError: An argument is out of its range; at the start of the fit: the scheme has no frozen teacher, there is
            no TensorBoard logger or no validation; in validation: an input is no image, or an activation is no map.

    Example:
        >>> AttentionMapsLogger(student=["conv.3"], teacher=["conv.3"], every_n_epochs=5).every_n_epochs
        5
    """

    def __init__(self, student: list[str], teacher: list[str], num_images: int = 4, every_n_epochs: int = 1) -> None:
        if not student or len(student) != len(teacher):
            raise UsageError(f"student={student} and teacher={teacher} must be pairs of layers, as many on each side")
        if num_images < 1 or every_n_epochs < 1:
            raise UsageError(f"num_images={num_images} and every_n_epochs={every_n_epochs} must be at least 1")
        self.student = student
        self.teacher = teacher
        self.num_images = num_images
        self.every_n_epochs = every_n_epochs

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the scheme, the loggers and the validation before training."""
        if not isinstance(pl_module, FrozenTeacher):
            raise UsageError(
                f"{type(pl_module).__name__} has no frozen teacher for AttentionMapsLogger to draw: remove the callback"
            )
        writes = trainer.fast_dev_run or any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)  # pyright: ignore[reportAttributeAccessIssue]
        if not writes:
            found = ", ".join(type(logger).__name__ for logger in trainer.loggers) or "none"
            raise UsageError(f"AttentionMapsLogger writes images and the logger is {found}: add a TensorBoardLogger")
        if not trainer.enable_validation:
            raise UsageError("AttentionMapsLogger draws validation images and there are none: set val_size of the data")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Log the maps of the first batch, in every n-th epoch."""
        if batch_idx or dataloader_idx or trainer.sanity_checking or not trainer.is_global_zero:
            return
        if not isinstance(pl_module, FrozenTeacher) or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        if not trainer.training and trainer.state.fn != "fit":
            return
        with trainer.precision_plugin.forward_context():
            image = self.draw(pl_module, batch)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("attention", image, trainer.global_step)  # pyright: ignore[reportUnknownMemberType]

    @torch.no_grad()
    def draw(self, learner: FrozenTeacher, batch: Any) -> Tensor:
        """Draw the maps of a batch as an image (3, H, W), in [0, 1]."""
        split = learner.split_batch(batch)
        student, teacher = (self._first(inputs) for inputs in (split.student, split.teacher))
        teacher_maps = tap(learner.teacher, teacher, self.teacher)
        student_maps = tap(learner.student, student, self.student)
        columns: list[Tensor] = []
        for own, other in zip(self.student, self.teacher, strict=True):
            columns += [_map("teacher", other, teacher_maps[other]), _map("student", own, student_maps[own])]
        return side_by_side(student, columns)

    def _first(self, inputs: Any) -> Tensor:
        if not isinstance(inputs, Tensor) or inputs.dim() != 4 or inputs.shape[1] not in (1, 3):
            what = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
            raise UsageError(
                f"AttentionMapsLogger draws images (N, 1 or 3, H, W), and the input is {what}: remove the callback"
            )
        return inputs[: self.num_images]


def side_by_side(images: Tensor, maps: list[Tensor], enlarge: int = 3) -> Tensor:
    """Arrange images (N, C, H, W) one a row, each followed by its maps (N, h, w), as one image (3, H', W').

    Example:
        >>> side_by_side(torch.zeros(2, 1, 4, 4), [torch.ones(2, 2, 2)], enlarge=1).shape
        torch.Size([3, 12, 12])
    """
    size = (images.shape[2] * enlarge, images.shape[3] * enlarge)
    tiles = [_to_unit(images.float()).expand(-1, 3, -1, -1)]
    for values in maps:
        heat = 3 * _to_unit(values.float().unsqueeze(1), from_zero=True)
        thresholds = torch.arange(3.0, device=values.device).view(3, 1, 1)
        tiles.append((heat - thresholds).clamp(0, 1))  # black, red, yellow, white
    tiles = [functional.pad(functional.interpolate(tile, size), [1, 1, 1, 1], value=0.5) for tile in tiles]
    return torch.cat([torch.cat([tile[n] for tile in tiles], dim=2) for n in range(len(images))], dim=1).cpu()


def _map(side: str, layer: str, features: Tensor) -> Tensor:
    """Compute the attention map (N, H, W) of a layer's activations (N, C, H, W)."""
    if features.dim() != 4:
        raise UsageError(
            f"the {side}'s layer {layer!r} has the output {tuple(features.shape)}, and AttentionMapsLogger draws maps "
            "(N, C, H, W): name a convolutional layer"
        )
    return features.float().square().mean(dim=1)


def _to_unit(values: Tensor, from_zero: bool = False) -> Tensor:
    """Scale each sample's values to [0, 1], from its minimum or from zero to its maximum."""
    low = torch.zeros_like(values) if from_zero else values.amin(dim=(1, 2, 3), keepdim=True)
    return (values - low) / (values - low).amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
