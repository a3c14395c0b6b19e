"""A run that goes on from any checkpoint sees the very images, and their very pixels, that it would have seen."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from kd_lightning.data import MNISTDataModule

BATCHES, EPOCHS = 4, 3


class Recorder(LightningModule):
    """Keeps what it was trained on: rows, and their augmented pixels."""

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.fails_at = fails_at
        self.seen: list[tuple[tuple[int, ...], Tensor]] = []

    def training_step(self, batch, batch_idx):
        x, _, index = batch
        if self.trainer.global_step == self.fails_at:
            raise Stop
        self.seen.append((tuple(index.tolist()), x.clone()))
        return self.weight * x.mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Stop(Exception):
    """The end of a run before its time."""


class SaveAt(Callback):
    """Saves whenever one of the hooks is called; the file's name ends with the number of the batches done."""

    def __init__(self, folder: Path, *hooks: str) -> None:
        for hook in hooks:
            setattr(self, hook, partial(self.save, folder / hook))

    def save(self, path, trainer, *_, **__):
        done = trainer.fit_loop.epoch_loop.batch_progress.total.processed
        trainer.save_checkpoint(f"{path}-{done}.ckpt")


class StopAt(Callback):
    """Saves a checkpoint after one more batch, and stops."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer, *_):
        trainer.save_checkpoint(self.path)
        raise Stop


def noise(image: Tensor) -> Tensor:
    return image + torch.rand(1)


def fit(module: Recorder, *callbacks: Callback, ckpt_path: Path | None = None, data=None, **arguments) -> list:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    if "max_steps" not in arguments:
        arguments["max_epochs"] = EPOCHS
    trainer = Trainer(callbacks=[*callbacks], enable_checkpointing=False, num_sanity_val_steps=0, **quiet, **arguments)
    subset = {"batch_size": 5, "train_size": 23, "val_size": 0, "augmentation": noise} | (data or {})
    trainer.fit(module, datamodule=MNISTDataModule(**subset), ckpt_path=ckpt_path, weights_only=True)
    return module.seen


def same(first: list, second: list) -> bool:
    return len(first) == len(second) and all(
        a == b and torch.equal(x, z) for (a, x), (b, z) in zip(first, second, strict=True)
    )


@pytest.mark.parametrize(
    ("arguments", "data"),
    [
        ({}, {}),
        ({}, {"val_size": 10}),
        ({}, {"steps_per_epoch": BATCHES, "train_size": 10}),
        ({"max_steps": BATCHES * EPOCHS}, {}),
        ({"max_steps": BATCHES * EPOCHS}, {"val_size": 10}),
        ({"max_steps": 9, "limit_train_batches": 3}, {}),
        ({"limit_train_batches": 3}, {"steps_per_epoch": BATCHES, "train_size": 10}),
        ({"val_check_interval": 2}, {"val_size": 10}),
        ({"accumulate_grad_batches": 2}, {}),
    ],
    ids=str,
)
def test_the_images_after_a_resume_are_those_of_the_uninterrupted_run(tmp_path, arguments, data):
    saving = SaveAt(tmp_path, "on_train_batch_end", "on_train_epoch_end", "on_validation_end")
    truth = fit(Recorder(), saving, data=data, **arguments)
    assert len(truth) == EPOCHS * arguments.get("limit_train_batches", BATCHES)
    assert len({index for index, _ in truth}) == len(truth)  # no two batches are alike
    checkpoints = list(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) >= len(truth) + EPOCHS
    for checkpoint in checkpoints:
        done = int(checkpoint.stem.rsplit("-")[-1])
        if done < len(truth):
            resumed = fit(Recorder(), data=data, ckpt_path=checkpoint, **arguments)
            assert same(resumed, truth[done:]), checkpoint.name


@pytest.mark.parametrize(
    "data", [{}, {"steps_per_epoch": BATCHES, "train_size": 10}], ids=["passes", "steps_per_epoch"]
)
def test_a_run_may_be_stopped_after_every_single_batch(tmp_path, data):
    """Twice and more in one epoch: each piece goes on from the checkpoint of the piece before."""
    truth = fit(Recorder(), data=data)
    pieces, checkpoint = [], None
    for step in range(BATCHES * EPOCHS):
        module, path = Recorder(), tmp_path / f"{step}.ckpt"
        with pytest.raises(Stop):
            fit(module, StopAt(path), data=data, ckpt_path=checkpoint)
        pieces.append(module.seen)
        checkpoint = path
    assert [len(piece) for piece in pieces] == [1] * BATCHES * EPOCHS
    assert same(list(itertools.chain(*pieces)), truth)


@pytest.mark.parametrize("step", range(BATCHES * EPOCHS))
def test_a_batch_that_failed_is_seen_again(tmp_path, step):
    """It was fetched and not trained on: what counts is what training consumed."""
    truth = fit(Recorder())
    module = Recorder(fails_at=step)
    with pytest.raises(Stop):
        fit(module, SaveAt(tmp_path, "on_exception"))
    assert same(module.seen, truth[:step])
    assert same(fit(Recorder(), ckpt_path=tmp_path / f"on_exception-{step}.ckpt"), truth[step:])
