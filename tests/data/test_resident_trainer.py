"""A `ResidentDataModule` with Lightning, and what it refuses."""

from typing import cast

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn

from kd_lightning.data import LabeledImages, MNISTDataModule, ResidentDataModule
from tests.data.resident import trainer
from tests.data.shapes import Shapes

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
