"""The loaders and views of a `ResidentDataModule`."""

import itertools
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from kd_lightning.data import MNISTDataModule
from tests.data.resident import indices, trainer

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
