"""MNIST, which rides in the package, and Fashion-MNIST, which does not."""

from __future__ import annotations

from functools import cache, cached_property
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.progress import completed_batches
from kd_lightning.data.idx import LabelledImages, read_labelled_images
from kd_lightning.data.split import check_sizes, split_rows
from kd_lightning.data.tensors import Augmentation, EvaluationLoader, TrainLoader, view_seeds

NUM_CLASSES = 10
TRAIN_ROWS = 60_000
PACKAGED = Path(__file__).parent / "files" / "mnist"
PUBLISHED_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


class MNISTDataModule(LightningDataModule):
    """The 60,000 training and 10,000 test digits (LeCun, Cortes, Burges), without a download.

    Batches are ``(x, y, index)``: x float32 (N, channels, 28, 28) in [0, 1]; y int64 (N,); index int64 (N,), the row in
    the full training set, or in the test set for a test batch. All 10,000 test images are always tested on. Validation
    images are held out of the training set, in its proportions of classes; `train_size` is spread as evenly over the
    classes as it can be. Each seed shuffles each class once: training takes its first images and validation its last,
    so that a seed and a `train_size` are the same images for everybody, and a small set is part of a larger one.

    Hand the trainer this object and not its loaders: from the trainer it knows the rank and the batches done.

    Args:
        batch_size: Training images a batch, on each process.
        train_size: Images to train on; all that are not held out if not given.
        val_size: Images to hold out for validation; with 0 there is none.
        seed: Chooses the images, their order and what the augmentation draws.
        augmentation: Applied to each training image by itself, float32 (1, 28, 28) in [0, 1]; it may change the size,
            or give as many channels as a batch has. It must draw from torch's default generator, as torchvision's do.
        drop_last: Leave out what is left of a pass after the last full global batch; of no effect with `epoch_steps`.
        epoch_steps: Full batches in an epoch, drawn over as many reshuffled passes as that takes; without it, an epoch
            is one pass.
        eval_batch_size: At most this many images a batch outside training, on each process.
        channels: How often the one channel is shown: as 3 to networks for colour images.
        views: In how many ways the augmentation shows an image: epoch ``e`` shows all of them in view ``e % views``,
            which depends on the seed, the view and the image alone, so that a `TeacherCache` can hold them. Without it
            each time is another; without an augmentation it is of no effect.

    Raises:
        UsageError: An argument is out of its range, or a file of the package is damaged.

    Example:
        >>> data = MNISTDataModule(batch_size=64, train_size=100, epoch_steps=1500)
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
        epoch_steps: int | None = None,
        eval_batch_size: int = 250,
        channels: int = 3,
        views: int | None = None,
    ) -> None:
        super().__init__()
        _check_whole("batch_size", batch_size, least=1)
        _check_whole("train_size", train_size, least=NUM_CLASSES, optional=True)
        _check_whole("val_size", val_size, least=0)
        _check_whole("seed", seed, least=0)
        _check_whole("epoch_steps", epoch_steps, least=1, optional=True)
        _check_whole("eval_batch_size", eval_batch_size, least=1)
        _check_whole("channels", channels, least=1)
        _check_whole("views", views, least=1, optional=True)
        check_sizes(train_size, val_size, TRAIN_ROWS)
        if augmentation is not None and not callable(augmentation):
            raise UsageError(f"augmentation={augmentation!r} is not callable: give a function of one image, or null")
        # what a checkpoint remembers: an augmentation is no plain value, and would need pickled code to load
        remembered = {
            "batch_size": batch_size,
            "train_size": train_size,
            "val_size": val_size,
            "seed": seed,
            "drop_last": drop_last,
            "epoch_steps": epoch_steps,
            "eval_batch_size": eval_batch_size,
            "channels": channels,
            "views": views,
        }
        self.save_hyperparameters(remembered, logger=False)
        self.batch_size = batch_size
        self.train_size = train_size
        self.val_size = val_size
        self.seed = seed
        self.augmentation = augmentation
        self.drop_last = drop_last
        self.epoch_steps = epoch_steps
        self.eval_batch_size = eval_batch_size
        self.channels = channels
        self._views = views
        self._epoch_length = 0
        self._limit_val_batches: int | float | None = None
        self._on_device: dict[int, LabelledImages] = {}

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.hparams.items())
        return f"{type(self).__name__}({arguments})"

    # ---- what a teacher cache and a summary ask

    @property
    def training_is_random(self) -> bool:
        """Whether a training image looks different each time, so that nothing about it may be kept by its index."""
        return self.augmentation is not None and self.views is None

    @property
    def views(self) -> int | None:
        """In how many ways the augmentation shows an image; None where there is none, or no end of ways."""
        return None if self.augmentation is None else self._views

    def view_of_batch(self) -> int:
        """The view that the batch which is trained on shows its images in, right after every resume."""
        # by the loader's epochs: Lightning's own are cut elsewhere under a limit on the batches, and after some resumes
        return self._batches_done() // self._epoch_length % (self.views or 1)

    @property
    def num_rows(self) -> int:
        """Rows of the full training set: every training and validation index is below it."""
        return len(self.train_set.labels)

    @property
    def example_input_array(self) -> Tensor:
        """One black image."""
        return torch.zeros(1, self.channels, 28, 28)

    def train_rows(
        self, rank: int = 0, world_size: int = 1, batch_size: int | None = None, view: int | None = None
    ) -> EvaluationLoader:
        """Every training image once, in the order of its index, or one share of them.

        Args:
            rank: Which share is given.
            world_size: How many shares there are.
            batch_size: At most this many images a batch, and never more than `eval_batch_size`.
            view: Shows them as they are trained on in this view; without it, as they are before augmentation.
        """
        return EvaluationLoader(
            self._resident(self.train_set),
            self.split[0],
            min(batch_size or self.eval_batch_size, self.eval_batch_size),
            self.channels,
            rank,
            world_size,
            augmentation=self.augmentation,
            seeds=None if view is None else view_seeds(self.seed, view, self.num_rows),
        )

    # ---- what Lightning calls

    def setup(self, stage: str) -> None:
        """Reads what the stage needs, so that a damaged file or a wrong size is reported before anything starts."""
        if stage == "validate" and not self.val_size:
            raise UsageError("val_size=0 holds no images out to validate on: set val_size, or use test")
        if stage == "fit" and not self.val_size and self.trainer is not None:
            # Lightning's own way to say that there is no validation: it warns of a loader that is empty or missing
            self._limit_val_batches = self.trainer.limit_val_batches
            self.trainer.limit_val_batches = 0
        _ = self.split if stage in ("fit", "validate") else self.test_set

    def teardown(self, stage: str) -> None:
        """Gives back a trainer that validates, and the device's memory."""
        self._on_device.clear()
        if self._limit_val_batches is not None and self.trainer is not None:
            self.trainer.limit_val_batches = self._limit_val_batches
            self._limit_val_batches = None

    def on_exception(self, exception: BaseException) -> None:
        """As teardown, which Lightning does not call then."""
        self.teardown("fit")

    def train_dataloader(self) -> TrainLoader:
        """Shuffled batches; see `TrainLoader`."""
        if overfit_batches := getattr(self.trainer, "overfit_batches", 0):
            raise UsageError(
                f"overfit_batches={overfit_batches} would see other images in each epoch: set train_size instead"
            )
        rank, world_size = self._rank_and_world_size()
        loader = TrainLoader(
            self._resident(self.train_set),
            self.split[0],
            self.batch_size,
            self.seed,
            epoch_steps=self.epoch_steps,
            drop_last=self.drop_last,
            augmentation=self.augmentation,
            channels=self.channels,
            rank=rank,
            world_size=world_size,
            batches_done=self._batches_done if self.trainer is not None else None,
            views=self.views,
        )
        self._epoch_length = len(loader)
        return loader

    def val_dataloader(self) -> EvaluationLoader | list[EvaluationLoader]:
        """The images that were held out; an empty list if none were."""
        if not self.val_size:
            return []
        return self._evaluation_loader(self.train_set, self.split[1], *self._rank_and_world_size())

    def test_dataloader(self) -> EvaluationLoader:
        """All test images."""
        rows = torch.arange(len(self.test_set.labels))
        return self._evaluation_loader(self.test_set, rows, *self._rank_and_world_size())

    def predict_dataloader(self) -> EvaluationLoader:
        """All test images."""
        return self.test_dataloader()

    # ---- inside

    @cached_property
    def train_set(self) -> LabelledImages:
        """The full training set, validation included."""
        return self._read("train")

    @cached_property
    def test_set(self) -> LabelledImages:
        """The test set."""
        return self._read("t10k")

    @cached_property
    def split(self) -> tuple[Tensor, Tensor]:
        """The rows of the training set to train on, and those to validate on."""
        return split_rows(self.train_set.labels, self.train_size, self.val_size, self.seed)

    def _read(self, split: str) -> LabelledImages:
        return read_published(PACKAGED, split)

    def _evaluation_loader(self, data: LabelledImages, rows: Tensor, rank: int, world_size: int) -> EvaluationLoader:
        return EvaluationLoader(self._resident(data), rows, self.eval_batch_size, self.channels, rank, world_size)

    def _resident(self, data: LabelledImages) -> LabelledImages:
        """The images on the device that learns, so that no batch is copied; an augmentation takes them on the CPU."""
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        if device.type == "cpu" or self.augmentation is not None:
            return data
        if id(data) not in self._on_device:
            self._on_device[id(data)] = LabelledImages(*(tensor.to(device) for tensor in data))
        return self._on_device[id(data)]

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _batches_done(self) -> int:
        assert self.trainer is not None
        return completed_batches(self.trainer)


class FashionMNISTDataModule(MNISTDataModule):
    """Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017), arXiv:1708.07747, from files that you have.

    Everything but the files is as for MNIST. The digests that were published are those of the compressed files, which
    others may compress anew: so only the structure is checked, the headers, the counts and the labels.

    Args:
        data_dir: The folder of ``{train,t10k}-{images-idx3,labels-idx1}-ubyte``, each gzipped (``.gz``) or not;
            Debian's package ``dataset-fashion-mnist`` has them in ``/usr/share/datasets/fashion-mnist``.
        batch_size: Training images a batch, on each process.
        train_size: Images to train on; all that are not held out if not given.
        val_size: Images to hold out for validation; with 0 there is none.
        seed: Chooses the images, their order and what the augmentation draws.
        augmentation: Applied to each training image by itself, float32 (1, 28, 28) in [0, 1].
        drop_last: Leave out what is left of a pass after the last full global batch; of no effect with `epoch_steps`.
        epoch_steps: Full batches in an epoch; without it, an epoch is one pass.
        eval_batch_size: At most this many images a batch outside training, on each process.
        channels: How often the one channel is shown.
        views: In how many ways the augmentation shows an image.

    Raises:
        FileNotFoundError: A file is missing.
        UsageError: An argument is out of its range, or a file is damaged.
    """

    def __init__(
        self,
        data_dir: str | Path,
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
        self.data_dir = data_dir
        self.hparams["data_dir"] = str(data_dir)  # a Path in a checkpoint would need pickled code to load

    def _read(self, split: str) -> LabelledImages:
        return read_labelled_images(self.data_dir, split, NUM_CLASSES)


@cache
def read_published(directory: Path, split: str) -> LabelledImages:
    """The four files of MNIST, as they were published; read once in a process."""
    return read_labelled_images(directory, split, NUM_CLASSES, PUBLISHED_MD5)


def _check_whole(name: str, value: object, least: int, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name}={value!r} is not a whole number of at least {least}{' or null' if optional else ''}")
