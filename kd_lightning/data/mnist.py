"""MNISTDataModule: packaged MNIST, the data of most configurations."""

from __future__ import annotations

from kd_lightning.data.augmentation import Augmentation
from kd_lightning.data.module import ResidentDataModule
from kd_lightning.data.sources.mnist import MNIST


class MNISTDataModule(ResidentDataModule):
    """`ResidentDataModule` of `MNIST`, with the grey channel repeated to three by default.

    The arguments are those of `ResidentDataModule`; use that class for views or another source.

    Args:
        batch_size: Training images a batch, on each process.
        train_size: Training images; all except the validation images if not given.
        val_size: Validation images, taken from the training set; with 0 there is no validation.
        seed: Chooses the images, their order and the augmentation's draws.
        augmentation: Applied to each training image by itself, float32 (1, 28, 28) in [0, 1].
        drop_last: Leave out the rest of a pass after its last full global batch; no effect with `steps_per_epoch`.
        steps_per_epoch: Full batches in an epoch; without it, an epoch is one pass.
        eval_batch_size: At most this many images a batch outside training, on each process.
        num_channels: Repeats the grey channel to this number.
        num_augmented_views: Number of fixed augmentations of each image; without it every augmentation is new.
        classes: The only classes to train on.

    Raises:
        UsageError: An argument is out of its range, or a file of the package is corrupt.

    Example:
        >>> data = MNISTDataModule(batch_size=64, train_size=100, steps_per_epoch=1500)
        >>> loader = data.train_dataloader()
        >>> len(loader), next(iter(loader))[0].shape
        (1500, torch.Size([64, 3, 28, 28]))
    """

    def __init__(
        self,
        batch_size: int = 64,
        train_size: int | None = None,
        val_size: int = 5000,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        drop_last: bool = True,
        steps_per_epoch: int | None = None,
        eval_batch_size: int = 250,
        num_channels: int = 3,
        num_augmented_views: int | None = None,
        classes: list[int] | None = None,
    ) -> None:
        super().__init__(
            MNIST(),
            batch_size,
            train_size,
            val_size,
            seed,
            augmentation,
            drop_last,
            steps_per_epoch,
            eval_batch_size,
            num_channels,
            num_augmented_views,
            classes,
        )
