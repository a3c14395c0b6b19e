"""The random numbers of a batch depend on the seed, the batch and the rank alone."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from kd_lightning.callbacks import ExactResume
from tests import toys

# a resumed run needs no callback that saves
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")

BATCHES = 4  # an epoch


class Random(LightningModule):
    """Learns from random numbers of every generator, and draws more in validation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.drawn: list[tuple[float, ...]] = []

    def draw(self) -> torch.Tensor:
        return torch.tensor([torch.rand(()).item(), random.random(), np.random.rand()])

    def training_step(self, batch, batch_idx):
        draw = self.draw()
        self.drawn.append(tuple(draw.tolist()))
        return (self.weight * draw).sum()

    def validation_step(self, batch, batch_idx):
        self.draw()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(folder, *callbacks, ckpt_path=None, **changes):
    module = Random()
    trainer = toys.trainer(folder, max_epochs=3, **changes)
    trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, ExactResume)]
    trainer.callbacks[:0] = callbacks
    loader = toys.Loader([torch.zeros(1)] * BATCHES)
    loader.state_dict, loader.load_state_dict = dict, lambda state: None  # all batches are alike: it can be resumed
    trainer.fit(module, loader, toys.Loader([torch.zeros(1)]), ckpt_path=ckpt_path)
    return module


def save_every_step(folder):
    return ModelCheckpoint(folder, "{step:02d}", every_n_train_steps=1, save_top_k=-1)


@pytest.mark.parametrize("changes", [{}, {"accumulate_grad_batches": 2}, {"val_check_interval": 2}])
def test_every_resume_draws_the_same_numbers(changes, tmp_path):
    whole = run(tmp_path, ExactResume(seed=3), save_every_step(tmp_path), **changes)
    assert len(set(whole.drawn)) == 3 * BATCHES  # no two batches draw alike, those of one accumulated group included
    saved = sorted(tmp_path.glob("*.ckpt"))
    assert len(saved) == 3 * BATCHES // changes.get("accumulate_grad_batches", 1)
    for checkpoint in saved:
        torch.rand(7), random.random(), np.random.rand()
        again = run(tmp_path, ExactResume(seed=3), ckpt_path=checkpoint, **changes)
        assert again.drawn == whole.drawn[3 * BATCHES - len(again.drawn) :], checkpoint.name
        assert torch.equal(again.weight, whole.weight), checkpoint.name


def test_without_the_callback_a_resume_draws_other_numbers(tmp_path):
    whole = run(tmp_path, save_every_step(tmp_path))
    again = run(tmp_path, ckpt_path=tmp_path / "step=05.ckpt")
    assert len(again.drawn) == 7
    assert not set(again.drawn) & set(whole.drawn)


def test_validation_does_not_change_the_random_numbers(tmp_path):
    drawn = [run(tmp_path, ExactResume(seed=3), **changes).drawn for changes in ({}, {"limit_val_batches": 0})]
    assert drawn[0] == drawn[1]


def test_the_seed_is_that_of_seed_everything_and_stays_with_the_run(tmp_path, monkeypatch):
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")  # restored at the end of the test, after seed_everything has set it
    explicit = run(tmp_path, ExactResume(seed=11)).drawn
    seed_everything(11)
    whole = run(tmp_path, ExactResume(), save_every_step(tmp_path))
    assert whole.drawn == explicit
    seed_everything(12)
    assert run(tmp_path, ExactResume()).drawn != explicit
    assert run(tmp_path, ExactResume(), ckpt_path=tmp_path / "step=05.ckpt").drawn == explicit[5:]
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert run(tmp_path, ExactResume()).drawn == run(tmp_path, ExactResume(seed=0)).drawn


def test_each_rank_draws_its_own_numbers(tmp_path, monkeypatch):
    first = run(tmp_path, ExactResume(seed=3)).drawn
    monkeypatch.setattr("lightning.pytorch.Trainer.global_rank", 1)
    assert not set(run(tmp_path, ExactResume(seed=3)).drawn) & set(first)


def test_seeding_takes_less_than_100_microseconds(tmp_path):
    callback, module = ExactResume(seed=3), Random()
    trainer = toys.trainer(tmp_path)
    trainer.strategy.connect(module)
    seconds = []
    for _ in range(200):
        start = time.perf_counter()
        callback.on_train_batch_start(trainer, module, None, 0)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 100e-6  # 11 microseconds were measured
