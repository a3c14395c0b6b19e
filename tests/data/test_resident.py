from __future__ import annotations

import gzip
import itertools
import random
import shutil
from types import SimpleNamespace
from typing import cast

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn

from kd_lightning import UsageError
from kd_lightning.cli.configs import SHIPPED
from kd_lightning.core.protocols import ProvidesAugmentedRows, ProvidesTrainingRows
from kd_lightning.data import LabeledImages, MNISTDataModule, ResidentDataModule, Source
from kd_lightning.data.sources.mnist import PACKAGED
from kd_lightning.data.split import TrainingRequest, TrainingSplit, split_rows
from tests.data.shapes import Shapes

# from the data set's own page and from everyone's normalisation constants
TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def counts(data: MNISTDataModule, rows: Tensor) -> list[int]:
    return data.train_set.labels[rows].bincount(minlength=10).tolist()


def test_the_packaged_files_are_mnist():
    data = MNISTDataModule()
    assert data.train_set.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert data.test_set.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert data.train_set.labels.bincount().tolist() == TRAIN_COUNTS
    assert data.test_set.labels.bincount().tolist() == TEST_COUNTS
    pixels = data.train_set.images.double() / 255
    assert (round(pixels.mean().item(), 4), round(pixels.std().item(), 4)) == (0.1307, 0.3081)


def test_the_packaged_files_are_checked(tmp_path, monkeypatch):
    for path in PACKAGED.glob("t10k-*"):
        shutil.copy(path, tmp_path)
    labels = tmp_path / "t10k-labels-idx1-ubyte.gz"
    content = gzip.decompress(labels.read_bytes())
    labels.write_bytes(gzip.compress(content[:-1] + bytes([(content[-1] + 1) % 10])))
    monkeypatch.setattr("kd_lightning.data.sources.mnist.PACKAGED", tmp_path)
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte\.gz is not the published file"):
        MNISTDataModule().setup("test")


def test_files_are_read_once_a_process():
    assert MNISTDataModule().train_set.images is MNISTDataModule(seed=1).train_set.images


# ---- the split


@pytest.mark.parametrize("seed", [0, 1])
def test_validation_is_held_out_in_proportion_to_the_classes(seed):
    data = MNISTDataModule(val_size=5000, seed=seed)
    train, val = data.split
    assert (len(train), len(val)) == (55_000, 5000)
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(60_000))
    assert all(abs(n - total / 12) < 1 for n, total in zip(counts(data, val), TRAIN_COUNTS, strict=True))


@pytest.mark.parametrize("train_size", [10, 100, 101, 1000, 1239, 50_000, 54_999])
def test_train_size_is_as_even_over_the_classes_as_it_can_be(train_size):
    data = MNISTDataModule(train_size=train_size)
    train, val = data.split
    assert len(train) == train_size
    assert not set(train.tolist()) & set(val.tolist())
    left = [total - held for total, held in zip(TRAIN_COUNTS, counts(data, val), strict=True)]
    given = counts(data, train)
    for n, available in zip(given, left, strict=True):
        assert n >= max(given) - 1 or n == available  # a class has fewer only when it has no more


@pytest.mark.parametrize("val_size", [0, 100, 10_000])
def test_a_seed_and_a_size_are_the_same_images_for_everybody(val_size):
    rows = {size: MNISTDataModule(train_size=size, val_size=val_size).split[0] for size in (100, 1000)}
    assert torch.equal(rows[100], MNISTDataModule(train_size=100).split[0])
    assert set(rows[100].tolist()) < set(rows[1000].tolist())
    assert not torch.equal(rows[100], MNISTDataModule(train_size=100, val_size=val_size, seed=1).split[0])


def test_which_images_a_seed_chooses_follows_from_python_alone():
    """So that it is the same on every machine and with every release: published comparisons name a seed, not rows."""
    numbers = random.Random(0)
    drawn = [numbers.random() for _ in range(60_000)]
    data = MNISTDataModule(train_size=100, seed=0)
    expected: list[int] = []
    for label in range(10):
        members = (data.train_set.labels == label).nonzero().flatten().tolist()
        expected += sorted(members, key=drawn.__getitem__)[:10]
    assert data.split[0].tolist() == sorted(expected)
    assert sorted(expected)[:5] == [40, 225, 402, 583, 993]


def test_which_class_is_larger_depends_on_the_seed():
    data = [MNISTDataModule(train_size=11, seed=seed) for seed in range(8)]
    assert len({tuple(counts(one, one.split[0])) for one in data}) > 1


def test_a_class_may_be_rare_or_missing():
    labels = torch.tensor([0] * 50 + [7] * 3 + [9] * 20)
    train, val = split_rows(labels, train_size=30, val_size=10, seed=0)
    assert labels[train].bincount(minlength=10)[[0, 7, 9]].tolist() in ([14, 3, 13], [13, 3, 14])
    assert labels[val].bincount(minlength=10)[[0, 7, 9]].tolist() == [7, 0, 3]


# ---- any source


@pytest.mark.parametrize("channels", [2, 3])
def test_images_of_several_channels_are_given_unchanged(channels):
    source = Shapes(channels)
    data = ResidentDataModule(source, batch_size=8, val_size=20, eval_batch_size=10)
    images = {"train_dataloader": source.train(), "val_dataloader": source.train(), "test_dataloader": source.test()}
    for name, expected in images.items():
        for x, y, index in getattr(data, name)():
            assert torch.equal(x * 255, expected.images[index].float())
            assert torch.equal(y, expected.labels[index])
    same = ResidentDataModule(source, batch_size=8, val_size=20, num_channels=channels)
    assert torch.equal(next(iter(same.train_dataloader()))[0], next(iter(data.train_dataloader()))[0])
    assert data.example_input_array.shape == (1, channels, 5, 6)


def test_a_grey_channel_is_repeated_and_no_other():
    data = ResidentDataModule(Shapes(1), batch_size=8, val_size=20, num_channels=3)
    x, _, index = next(iter(data.train_dataloader()))
    assert torch.equal(x * 255, data.train_set.images[index].float().repeat(1, 3, 1, 1))
    assert data.example_input_array.shape == (1, 3, 5, 6)
    for stage, where in (("fit", "train"), ("test", "test")):
        message = rf"num_channels=3, but Shapes.{where}\(\) has 2 channels, and only one grey channel is repeated"
        with pytest.raises(UsageError, match=message):
            ResidentDataModule(Shapes(2), val_size=20, num_channels=3).setup(stage)


def test_a_stage_reads_what_it_needs_and_reads_it_once():
    source = Shapes()
    data = ResidentDataModule(source, val_size=20, batch_size=8)
    data.setup("test")
    assert source.reads == ["test"]
    data = ResidentDataModule(source := Shapes(), val_size=20, batch_size=8)
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader(), data.train_rows()):
        next(iter(loader))
    assert set(source.reads) == {"train"}


class Recording(Shapes):
    """Keeps what it was asked to prepare, and divides its rows itself."""

    def prepare(self, request):
        self.request = request

    def split(self, request):
        return TrainingSplit(torch.full((200,), 3), torch.arange(0, 200, 2), torch.arange(1, 200, 50))


def test_a_source_prepares_and_divides_its_rows_itself(tmp_path):
    source = Recording()
    data = ResidentDataModule(source, batch_size=10, train_size=100, val_size=4, seed=7, classes=[3, 1])
    trainer(default_root_dir=tmp_path).fit(Reads(), datamodule=data)
    assert source.request == TrainingRequest(100, 4, 7, (3, 1), None, tmp_path, torch.device("cpu"))
    index = torch.cat([index for _, _, index in data.train_dataloader()])
    assert sorted(index.tolist()) == [*range(0, 200, 2)]
    assert {label for _, y, _ in data.train_dataloader() for label in y.tolist()} == {3}
    assert [index.tolist() for _, _, index in data.val_dataloader()] == [[1, 51, 101, 151]]


class Reads(LightningModule):
    """Fits anything."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        return self.weight * batch[0].mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_checkpoint_of_any_source_is_plain_and_takes_the_source_again(tmp_path):
    data = ResidentDataModule(Shapes(), batch_size=10, val_size=20, seed=3, classes=[1, 2])
    run = trainer(max_epochs=1)
    run.fit(Reads(), datamodule=data)
    run.save_checkpoint(tmp_path / "run.ckpt")
    again = ResidentDataModule.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True, source=Shapes())
    assert all(map(torch.equal, again.split, data.split))
    assert dict(again.hparams) == dict(data.hparams)
    assert str(again).startswith("ResidentDataModule(source=Shapes, batch_size=10, ")


def test_the_module_offers_the_rows_that_a_cache_needs():
    assert isinstance(ResidentDataModule(Shapes()), ProvidesTrainingRows)
    assert isinstance(ResidentDataModule(Shapes()), ProvidesAugmentedRows)


def test_an_object_that_is_no_source_is_refused():
    with pytest.raises(UsageError, match="source='mnist' is not a Source: pass an object such as"):
        ResidentDataModule("mnist")

    class Unsaid(Source):
        def train(self):
            raise NotImplementedError

        test = train

    with pytest.raises(UsageError, match="source=Unsaid has no num_classes: set it to the number of its classes"):
        ResidentDataModule(Unsaid())


def test_a_number_for_views_is_refused():
    with pytest.raises(UsageError, match=r"views=4 is not a BatchViews: .* set num_augmented_views"):
        ResidentDataModule(Shapes(), views=4)


# ---- classes to train on


def test_classes_are_left_out_of_training_and_of_nothing_else():
    data, plain = MNISTDataModule(classes=[7, 8], batch_size=50), MNISTDataModule(batch_size=50)
    left = [total - held for total, held in zip(TRAIN_COUNTS, counts(data, data.split[1]), strict=True)]
    assert counts(data, data.split[0]) == [0] * 7 + left[7:9] + [0]
    assert set(data.split[0].tolist()) < set(plain.split[0].tolist())
    assert torch.equal(data.split[1], plain.split[1])
    assert {label for _, y, _ in data.train_dataloader() for label in y.tolist()} == {7, 8}  # labels keep their numbers
    seen = torch.cat([y for _, y, _ in data.test_dataloader()]).bincount().tolist()
    assert seen == TEST_COUNTS
    assert list(itertools.chain(*indices(data.train_rows()))) == data.split[0].tolist()


def test_train_size_is_spread_over_the_classes_to_train_on():
    without = [label for label in range(10) if label != 3]
    data = MNISTDataModule(classes=without, train_size=90)
    assert counts(data, data.split[0]) == [10, 10, 10, 0, *[10] * 6]
    assert set(data.split[0].tolist()) < set(MNISTDataModule(train_size=100).split[0].tolist())
    assert torch.equal(MNISTDataModule(classes=[*range(10)]).split[0], MNISTDataModule().split[0])


@pytest.mark.parametrize(
    ("name", "trained"), [("kd_without_threes", {0, 1, 2, 4, 5, 6, 7, 8, 9}), ("kd_sevens_and_eights", {7, 8})]
)
def test_the_configured_transfer_sets_are_those_of_the_paper(name, trained):
    config = yaml.safe_load((SHIPPED / f"response/{name}.yaml").read_text())
    assert set(config["model"]["init_args"]["terms"]) == {"kd"}  # labels would say which classes there are
    data = MNISTDataModule(**config["data"]["init_args"])
    assert set(data.train_set.labels[data.split[0]].tolist()) == trained
    assert set(data.train_set.labels[data.split[1]].tolist()) == {*range(10)}


@pytest.mark.parametrize("classes", [[], [3, 3], [10], [-1], [True], ["3"], [1.0], 3, "37"])
def test_invalid_classes_are_refused(classes):
    with pytest.raises(UsageError, match=r"classes=.* must be different whole numbers from 0 to 9, or null") as caught:
        MNISTDataModule(classes=classes)
    assert "\n" not in str(caught.value)


def test_more_images_than_the_classes_have_are_refused():
    with pytest.raises(UsageError, match=r"train_size=12000 is more than the 11\d\d\d images of classes=\[7, 8\]"):
        MNISTDataModule(classes=[7, 8], train_size=12_000).setup("fit")
    with pytest.raises(UsageError, match="train_size=1 is not a whole number of at least 2"):
        MNISTDataModule(classes=[7, 8], train_size=1)


# ---- loaders


def test_every_test_image_is_tested_on_once_whatever_the_split():
    data = MNISTDataModule(train_size=100, val_size=0, eval_batch_size=999)
    for loader in (data.test_dataloader(), data.predict_dataloader()):
        index = torch.cat([index for _, _, index in loader])
        assert torch.equal(index, torch.arange(10_000))


def test_validation_batches_hold_the_rows_held_out():
    data = MNISTDataModule(val_size=77)
    (x, y, index) = next(iter(cast("list[tuple[Tensor, Tensor, Tensor]]", data.val_dataloader())))
    assert torch.equal(index, data.split[1])
    assert torch.equal(y, data.train_set.labels[index])
    assert torch.equal(x[:, :1] * 255, data.train_set.images[index].float())


def test_ranks_come_from_the_trainer():
    alone = MNISTDataModule(train_size=100, val_size=77, batch_size=20)
    truth = [indices(loader) for loader in (alone.train_dataloader(), alone.val_dataloader())]
    parts = []
    for rank in range(2):
        data = MNISTDataModule(train_size=100, val_size=77, batch_size=10)
        progress = SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(processed=0)))
        data.trainer = SimpleNamespace(
            global_rank=rank,
            world_size=2,
            fit_loop=SimpleNamespace(epoch_loop=progress),
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
            default_root_dir=".",
        )
        parts.append([indices(loader) for loader in (data.train_dataloader(), data.val_dataloader())])
    assert [a + b for a, b in zip(parts[0][0], parts[1][0], strict=True)] == truth[0]
    assert sorted(itertools.chain(*parts[0][1], *parts[1][1])) == sorted(itertools.chain(*truth[1]))
    assert [len(part[1][0]) for part in parts] == [39, 38]


def indices(loader) -> list[list[int]]:
    return [index.tolist() for _, _, index in loader]


def test_what_a_teacher_cache_needs():
    data = MNISTDataModule(train_size=100, augmentation=lambda image: torch.zeros_like(image), eval_batch_size=30)
    assert data.training_is_random
    assert not MNISTDataModule().training_is_random
    assert data.num_rows == 60_000
    assert list(itertools.chain(*indices(data.train_rows()))) == data.split[0].tolist()
    assert all(torch.equal(x[:, :1] * 255, data.train_set.images[index].float()) for x, _, index in data.train_rows())
    shares = [list(itertools.chain(*indices(data.train_rows(rank, 3)))) for rank in range(3)]
    assert sorted(itertools.chain(*shares)) == data.split[0].tolist()


def test_training_rows_come_in_batches_of_the_requested_size():
    data = MNISTDataModule(train_size=100, eval_batch_size=30)
    for asked, most in ((None, 25), (7, 7), (30, 25), (1000, 25)):
        loader = data.train_rows(batch_size=asked)
        assert max(len(rows) for rows in indices(loader)) == most
        assert loader.num_rows == 100
    assert [data.train_rows(rank, 3, batch_size=7).num_rows for rank in range(3)] == [34, 33, 33]


# ---- views


def noise(image: Tensor) -> Tensor:
    return image + torch.rand(1)


def test_a_stated_number_of_views_is_not_random():
    for views, augmentation, stated, random_ in (
        (None, noise, None, True),
        (3, noise, 3, False),
        (3, None, None, False),
        (None, None, None, False),
    ):
        data = MNISTDataModule(train_size=20, augmentation=augmentation, num_augmented_views=views)
        assert (data.num_augmented_views, data.training_is_random) == (stated, random_)
        assert data.hparams["num_augmented_views"] == views


def test_training_rows_can_be_seen_as_a_view_shows_them():
    data = MNISTDataModule(batch_size=10, train_size=20, val_size=0, augmentation=noise, num_augmented_views=2, seed=4)
    loader = data.train_dataloader()
    plain = dict(zip(data.split[0].tolist(), next(iter(data.train_rows()))[0], strict=True))
    epochs = []
    for epoch in range(4):
        (x, y, index) = next(iter(data.train_rows(view=epoch % 2)))
        rows = dict(zip(index.tolist(), x, strict=True))
        assert torch.equal(y, data.train_set.labels[index])
        for images, _, trained in loader:
            assert all(torch.equal(image, rows[row]) for image, row in zip(images, trained.tolist(), strict=True))
        assert not any(torch.equal(rows[row], plain[row]) for row in rows)
        epochs.append(rows)
    assert not any(torch.equal(epochs[0][row], epochs[1][row]) for row in plain)
    bare = MNISTDataModule(train_size=20, val_size=0, num_augmented_views=2, seed=4)
    assert all(map(torch.equal, next(iter(bare.train_rows(view=1)))[0], plain.values()))


class Viewing(LightningModule):
    """Holds what the data module says of each batch against its pixels."""

    def __init__(self, folder=None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.folder = folder
        self.seen: list[int] = []

    def on_train_batch_start(self, batch, batch_idx):
        self.view = self.trainer.datamodule.view_of_batch()

    def training_step(self, batch, batch_idx):
        x, _, index = batch
        data = self.trainer.datamodule
        assert data.view_of_batch() == self.view
        (images, _, rows) = next(iter(data.train_rows(view=self.view)))
        assert torch.equal(x, images[torch.searchsorted(rows, index)])
        self.seen.append(self.view)
        return self.weight * x.mean()

    def validation_step(self, batch, batch_idx):
        pass

    def on_train_batch_end(self, *_):
        if self.folder:
            self.trainer.save_checkpoint(self.folder / f"{len(self.seen)}.ckpt")

    def on_train_epoch_end(self):
        if self.folder:
            self.trainer.save_checkpoint(self.folder / f"{len(self.seen)}-end.ckpt")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize(
    ("arguments", "views"),
    [
        ({"max_epochs": 4}, [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0]),
        ({"max_epochs": -1, "max_steps": 11}, [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0]),
        ({"max_epochs": 4, "limit_train_batches": 2}, [0, 0, 0, 1, 1, 1, 2, 2]),  # by the loader's epochs of three
        ({"max_epochs": 2, "accumulate_grad_batches": 2}, [0, 0, 0, 1, 1, 1]),
    ],
    ids=str,
)
def test_the_view_of_a_batch_is_known_after_every_resume(arguments, views, tmp_path):
    def data():
        return MNISTDataModule(batch_size=6, train_size=20, val_size=0, augmentation=noise, num_augmented_views=3)

    module = Viewing(tmp_path)
    trainer(**arguments).fit(module, data())
    assert module.seen == views
    for saved in tmp_path.glob("*.ckpt"):
        again, done = Viewing(), int(saved.stem.partition("-")[0])
        trainer(**arguments).fit(again, data(), ckpt_path=saved, weights_only=True)
        assert again.seen == views[done:], saved.name


# ---- with Lightning


class Probe(LightningModule):
    """Trains nothing much, counts everything."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(784, 10)
        self.seen: dict[str, int] = {}

    def step(self, stage: str, batch) -> Tensor:
        x, y, _ = batch
        self.seen[stage] = self.seen.get(stage, 0) + len(y)
        return nn.functional.cross_entropy(self.layer(x[:, 0].flatten(1)), y)

    def training_step(self, batch, batch_idx):
        return self.step("train", batch)

    def validation_step(self, batch, batch_idx):
        self.step("val", batch)

    def test_step(self, batch, batch_idx):
        self.step("test", batch)

    def predict_step(self, batch, batch_idx):
        return batch[2]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(**arguments) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(**{"max_epochs": 2, "num_sanity_val_steps": 0, "enable_checkpointing": False, **quiet, **arguments})


@pytest.mark.parametrize("val_size", [0, 77])
def test_any_trainer_fits_tests_and_predicts(val_size):
    data = MNISTDataModule(batch_size=32, train_size=100, val_size=val_size)
    module, run = Probe(), trainer()
    run.fit(module, datamodule=data)
    run.test(module, datamodule=data, verbose=False)
    assert module.seen == {"train": 2 * 96, "test": 10_000} | ({"val": 2 * val_size} if val_size else {})
    predicted = cast("list[Tensor]", run.predict(module, datamodule=data))
    assert torch.equal(torch.cat(predicted), torch.arange(10_000))
    assert run.limit_val_batches == 1.0
    if not val_size:
        with pytest.raises(ValueError, match="val_size=0 leaves no validation images"):
            run.validate(module, datamodule=data)


class Missing(Shapes):
    def train(self) -> LabeledImages:
        raise FileNotFoundError("no such images")


def test_a_damaged_file_is_reported_before_anything_starts():
    module = Probe()
    with pytest.raises(FileNotFoundError, match="no such images"):
        trainer().fit(module, datamodule=ResidentDataModule(Missing(), batch_size=8, val_size=20))
    assert not module.seen


def test_a_trainer_validates_again_after_a_run_without_validation_failed():
    run = trainer()
    with pytest.raises(ValueError, match="train_size"):
        run.fit(Probe(), datamodule=MNISTDataModule(batch_size=64, train_size=50, val_size=0))
    assert run.limit_val_batches == 1.0


def test_overfit_batches_is_refused():
    with pytest.raises(ValueError, match=r"overfit_batches=2 .*train_size"):
        trainer(overfit_batches=2).fit(Probe(), datamodule=MNISTDataModule())


def test_a_checkpoint_remembers_plain_values(tmp_path):
    data = MNISTDataModule(32, train_size=100, val_size=0, seed=3, augmentation=nn.Identity())
    run = trainer(max_epochs=1)
    run.fit(Probe(), datamodule=data)
    run.save_checkpoint(tmp_path / "run.ckpt")
    again = MNISTDataModule.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    assert torch.equal(again.split[0], data.split[0])
    assert (again.batch_size, again.seed, again.augmentation) == (32, 3, None)
    assert all(value is None or isinstance(value, (int, bool)) for value in data.hparams.values())
    assert "seed=3" in str(data)


class Brighter(nn.Module):
    """An augmentation that the command line can name."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, image: Tensor) -> Tensor:
        return image + self.by


def command_line(tmp_path, *arguments: str) -> LightningCLI:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet |= {"enable_checkpointing": False, "max_epochs": 1, "default_root_dir": str(tmp_path)}
    return LightningCLI(
        Probe,
        MNISTDataModule,
        subclass_mode_data=True,
        seed_everything_default=False,
        trainer_defaults=quiet,
        save_config_callback=None,
        args=[*arguments],
        run=False,
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning calls an interface that jsonargparse left
def test_the_command_line_builds_it_and_its_checkpoint_is_plain(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["kd-lightning"])
    augmentation = f'{{"class_path": "{Brighter.__module__}.Brighter", "init_args": {{"by": 2}}}}'
    data = command_line(
        tmp_path,
        "--data=MNISTDataModule",
        "--data.train_size=100",
        "--data.val_size=0",
        f"--data.augmentation={augmentation}",
    )
    assert isinstance(data.datamodule.augmentation, Brighter)
    assert next(iter(data.datamodule.train_dataloader()))[0].min() >= 2
    data.trainer.fit(data.model, datamodule=data.datamodule)
    data.trainer.save_checkpoint(tmp_path / "run.ckpt")
    again = MNISTDataModule.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    assert torch.equal(again.split[0], data.datamodule.split[0])


# ---- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 is not a whole number of at least 1"),
        ({"batch_size": -4}, "batch_size=-4"),
        ({"batch_size": True}, "batch_size=True"),
        ({"batch_size": 64.0}, r"batch_size=64\.0"),
        ({"batch_size": float("nan")}, "batch_size=nan"),
        ({"batch_size": None}, "batch_size=None"),
        ({"batch_size": "64"}, "batch_size='64'"),
        ({"eval_batch_size": 0}, "eval_batch_size=0"),
        ({"steps_per_epoch": 0}, "steps_per_epoch=0 is not a whole number of at least 1 or null"),
        ({"seed": -1}, "seed=-1 is not a whole number of at least 0"),
        ({"val_size": -1}, "val_size=-1"),
        ({"num_channels": 0}, "num_channels=0"),
        ({"num_augmented_views": 0}, "num_augmented_views=0 is not a whole number of at least 1 or null"),
        ({"num_augmented_views": 2.0}, r"num_augmented_views=2\.0"),
        ({"train_size": 9}, "train_size=9 is not a whole number of at least 10 or null"),
        ({"train_size": 0.1}, r"train_size=0\.1"),
        ({"train_size": 55_001}, "train_size=55001 and val_size=5000 exceed the 60000 images"),
        ({"val_size": 60_000}, "train_size=None and val_size=60000 exceed the 60000 images"),
        ({"augmentation": "rotate"}, "augmentation='rotate' is not callable"),
    ],
)
def test_a_bad_argument_is_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        MNISTDataModule(**arguments)
    assert "\n" not in str(caught.value)


def test_sizes_are_checked_against_the_source():
    with pytest.raises(ValueError, match="train_size=190 and val_size=20 exceed the 200 images of the training set"):
        ResidentDataModule(Shapes(), train_size=190, val_size=20).setup("fit")


def test_a_subset_smaller_than_a_batch_needs_steps_per_epoch():
    with pytest.raises(ValueError, match=r"train_size=50 .*batch_size=64.*steps_per_epoch"):
        trainer().fit(Probe(), datamodule=MNISTDataModule(batch_size=64, train_size=50))
    module = Probe()
    trainer(max_epochs=1).fit(
        module, datamodule=MNISTDataModule(batch_size=64, train_size=50, steps_per_epoch=3, val_size=0)
    )
    assert module.seen == {"train": 192}
