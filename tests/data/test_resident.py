"""The rows of a `ResidentDataModule`: packaged MNIST, its split, any source, chosen classes."""

import gzip
import itertools
import random
import shutil

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from kd_lightning import UsageError
from kd_lightning.cli.configs import SHIPPED
from kd_lightning.core.protocols import ProvidesAugmentedRows, ProvidesTrainingRows
from kd_lightning.data import MNISTDataModule, ResidentDataModule, Source
from kd_lightning.data.sources.mnist import PACKAGED
from kd_lightning.data.split import TrainingRequest, TrainingSplit, split_rows
from tests.data.resident import indices, trainer
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
    frequency = data.train_set.images.flatten().bincount().double()  # of each value of a pixel
    frequency /= frequency.sum()
    value = torch.arange(256) / 255
    mean = (frequency * value).sum()
    std = (frequency * (value - mean).square()).sum().sqrt()
    assert (round(mean.item(), 4), round(std.item(), 4)) == (0.1307, 0.3081)


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
