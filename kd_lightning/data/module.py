"""ResidentDataModule: a source's images, resident in memory, in an order that a run can resume."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.data.augmentation import Augmentation, view_seeds
from kd_lightning.data.base import SourceDataModule
from kd_lightning.data.checks import check_classes, check_epoch, check_whole
from kd_lightning.data.loaders import EvaluationLoader, TrainLoader
from kd_lightning.data.sources.base import LabeledImages, Source
from kd_lightning.data.split import TrainingRequest, TrainingSplit, check_sizes
from kd_lightning.data.views.base import BatchViews, EvaluationViewLoader, Part, TrainViewLoader


class ResidentDataModule(SourceDataModule):
    """Batches of a source's images, which stay in memory as bytes: on the GPU that trains, if there is one.

    Batches are ``(x, y, index)``: x float32 (N, C, H, W) in [0, 1]; y int64 (N,); index int64 (N,), the row in the full
    training set, or in the test set for a test batch. With `views` they are mappings. The test uses all test images.
    Validation images are held out of the training set, in its proportions of classes; `train_size` is spread as evenly
    over the classes as possible. Each seed shuffles each class once: training takes its first images and validation its
    last, so that a seed and a `train_size` always choose the same images, and a small set is part of a larger one.

    Pass this object to the trainer and not its loaders: the trainer tells it the rank and the completed batches. A
    checkpoint saves the plain values; `load_from_checkpoint` needs `source`, `augmentation` and `views` again.

    Args:
        source: The images and labels.
        batch_size: Training images a batch, on each process.
        train_size: Training images; all except the validation images if not given.
        val_size: Validation images, taken from the training set; with 0 there is no validation.
        seed: Chooses the images, their order and the augmentation's draws.
        augmentation: Applied to each training image by itself, float32 (C, H, W) in [0, 1]; it may change the size, or
            return `num_channels` channels. It must draw from torch's default generator, as torchvision's do.
        drop_last: Leave out the rest of a pass after its last full global batch; no effect with `steps_per_epoch`.
        steps_per_epoch: Full batches in an epoch, drawn over as many reshuffled passes as that takes; without it, an
            epoch is one pass.
        eval_batch_size: At most this many images a batch outside training, on each process.
        num_channels: Repeats a grey image to this number of channels, e.g. 3 for networks of colour images. Images of
            several channels are unchanged.
        num_augmented_views: Number of fixed augmentations of each image: epoch ``e`` shows all images in view
            ``e % num_augmented_views``, which depends on the seed, the view and the image alone, so that a
            `TeacherCache` can store them. Without it every augmentation is new; no effect without an augmentation.
        classes: The only classes to train on: a transfer set. Validation and test keep all classes, and labels keep
            their numbers; `train_size` is spread over these classes.
        views: Turns each batch into a mapping of views; see `PairedViews` and `DigitScenes`.

    Raises:
        UsageError: An argument is out of its range, or the source's images or labels have a wrong type or shape.

    Example:
        >>> from kd_lightning.data import Digits
        >>> data = ResidentDataModule(Digits(), batch_size=64, train_size=100, val_size=500, steps_per_epoch=1500)
        >>> loader = data.train_dataloader()
        >>> len(loader), next(iter(loader))[0].shape
        (1500, torch.Size([64, 1, 8, 8]))
    """

    def __init__(
        self,
        source: Source,
        batch_size: int = 64,
        train_size: int | None = None,
        val_size: int = 5000,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        drop_last: bool = True,
        steps_per_epoch: int | None = None,
        eval_batch_size: int = 250,
        num_channels: int | None = None,
        num_augmented_views: int | None = None,
        classes: list[int] | None = None,
        views: BatchViews | None = None,
    ) -> None:
        # without augmentation, source and views: they are not plain values, and would need pickled code to load
        hyperparameters = {
            "batch_size": batch_size,
            "train_size": train_size,
            "val_size": val_size,
            "seed": seed,
            "drop_last": drop_last,
            "steps_per_epoch": steps_per_epoch,
            "eval_batch_size": eval_batch_size,
            "num_channels": num_channels,
            "num_augmented_views": num_augmented_views,
            "classes": classes,
        }
        super().__init__(source, eval_batch_size, num_channels, hyperparameters)
        check_whole("batch_size", batch_size, least=1)
        check_classes(classes, source.num_classes)
        check_whole("train_size", train_size, least=len(classes or range(source.num_classes)), optional=True)
        check_whole("val_size", val_size, least=0)
        check_whole("seed", seed, least=0)
        check_whole("steps_per_epoch", steps_per_epoch, least=1, optional=True)
        check_epoch(steps_per_epoch, batch_size)
        check_whole("num_augmented_views", num_augmented_views, least=1, optional=True)
        if source.num_train is not None:
            check_sizes(train_size, val_size, source.num_train)
        if augmentation is not None and not callable(augmentation):
            raise UsageError(f"augmentation={augmentation!r} is not callable: give a function of one image, or null")
        if not isinstance(views, BatchViews | None):  # pyright: ignore[reportUnnecessaryIsInstance]  # as for `source`
            raise UsageError(
                f"views={views!r} is not a BatchViews: pass e.g. PairedViews; for a number of augmentations, set "
                "num_augmented_views"
            )
        self.batch_size = batch_size
        self.train_size = train_size
        self.val_size = val_size
        self.seed = seed
        self.augmentation = augmentation
        self.drop_last = drop_last
        self.steps_per_epoch = steps_per_epoch
        self.classes = classes
        self.views = views
        self._num_augmented_views = num_augmented_views
        self._epoch_length = 0

    # ---- training rows, once each: see `kd_lightning.core.protocols`

    @property
    def training_is_random(self) -> bool:
        """True if a training image differs each time, so that no result may be cached by its index."""
        return self.augmentation is not None and self._num_augmented_views is None

    @property
    def num_augmented_views(self) -> int | None:
        """Number of fixed augmentations of an image; None without an augmentation, or where every one is new."""
        return None if self.augmentation is None else self._num_augmented_views

    def view_of_batch(self) -> int:
        """Return the view of the batch that is trained on now, right after every resume."""
        # by the loader's epochs: Lightning's differ under a limit on the batches, and after some resumes
        return self._completed_batches() // self._epoch_length % (self.num_augmented_views or 1)

    def train_rows(
        self, rank: int = 0, world_size: int = 1, batch_size: int | None = None, view: int | None = None
    ) -> EvaluationLoader | EvaluationViewLoader:
        """Return a loader of every training image once, in the order of the index, or of one share of them.

        Args:
            rank: Number of the share.
            world_size: Number of shares.
            batch_size: At most this many images a batch, and never more than `eval_batch_size`.
            view: The view to augment them in; without it they are not augmented.
        """
        part = self._part("train")
        loader = EvaluationLoader(
            part.data,
            part.rows,
            min(batch_size or self.eval_batch_size, self.eval_batch_size),
            self.num_channels,
            rank,
            world_size,
            augmentation=self.augmentation,
            seeds=None if view is None else view_seeds(self.seed, view, self.num_rows),
        )
        return loader if self.views is None else EvaluationViewLoader(loader, partial(self.views, part=part))

    @property
    def num_rows(self) -> int:
        """Number of rows of the full training set: every training and validation index is below it."""
        return len(self.train_set.labels)

    @property
    def example_input_array(self) -> Tensor | None:
        """One black image; None with `views`, because the scheme chooses each network's view."""
        return None if self.views is not None else torch.zeros(1, *self._image_shape())

    # ---- Lightning hooks

    def setup(self, stage: str) -> None:
        """Read the images of the stage, so that a corrupt file or a wrong size is reported before training starts."""
        self._prepare_validation(stage, self.val_size)
        _ = self.split if stage in ("fit", "validate") else self.test_set

    def train_dataloader(self) -> TrainLoader | TrainViewLoader:
        """Return a loader of shuffled training batches; see `TrainLoader`."""
        self._refuse_overfit_batches()
        rank, world_size = self._rank_and_world_size()
        part = self._part("train")
        loader = self.train_loader_class(
            part.data,
            self.split[0],
            self.batch_size,
            self.seed,
            steps_per_epoch=self.steps_per_epoch,
            drop_last=self.drop_last,
            augmentation=self.augmentation,
            num_channels=self.num_channels,
            rank=rank,
            world_size=world_size,
            completed_batches=self._progress(),
            num_augmented_views=self.num_augmented_views,
        )
        self._epoch_length = len(loader)
        views = self.views
        if views is None:
            return loader
        return TrainViewLoader(loader, lambda batch: views.in_training(views(batch, part)))

    def val_dataloader(self) -> EvaluationLoader | EvaluationViewLoader | list[Any]:
        """Return a loader of the validation images, or an empty list if there are none."""
        return self._evaluation_loader("val") if self.val_size else []

    def test_dataloader(self) -> EvaluationLoader | EvaluationViewLoader:
        """Return a loader of all test images, in the order of the test set."""
        return self._evaluation_loader("test")

    # ---- inside

    train_loader_class: type[TrainLoader] = TrainLoader
    """The class of the training loader."""

    @cached_property
    def train_set(self) -> LabeledImages:
        """The full training set, validation included."""
        return LabeledImages(self._training_images.images, self._split.labels)

    @property
    def split(self) -> tuple[Tensor, Tensor]:
        """The rows of the training set to train on, and those to validate on."""
        return self._split.train, self._split.val

    @cached_property
    def _training_images(self) -> LabeledImages:
        return self._checked(self.source.train(), "train")

    @cached_property
    def _split(self) -> TrainingSplit:
        _ = self._training_images  # checked before it is divided
        return self.source.split(self._training_request())

    def _training_request(self) -> TrainingRequest:
        return TrainingRequest(
            self.train_size,
            self.val_size,
            self.seed,
            None if self.classes is None else tuple(self.classes),
            self.num_channels,
            Path("." if self.trainer is None else self.trainer.default_root_dir),
            torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device,
        )

    def _device(self) -> torch.device:
        """Return the CPU if there is an augmentation, which runs there."""
        return super()._device() if self.augmentation is None else torch.device("cpu")

    def _part(self, stage: Literal["train", "val", "test"]) -> Part:
        if stage == "test":
            return Part(
                stage, data := self._resident(self.test_set), torch.arange(len(data.labels)).to(data.labels.device)
            )
        rows = self._split.train if stage == "train" else self._split.val
        return Part(stage, self._resident(self.train_set), self._on_device(rows))

    def _evaluation_loader(self, stage: Literal["val", "test"]) -> EvaluationLoader | EvaluationViewLoader:
        part = self._part(stage)
        ranks = self._rank_and_world_size()
        loader = EvaluationLoader(part.data, part.rows, self.eval_batch_size, self.num_channels, *ranks)
        return loader if self.views is None else EvaluationViewLoader(loader, partial(self.views, part=part))
