from __future__ import annotations

import itertools

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from kd_lightning.data import MNIST, LabeledImages, MNISTDataModule, PairLoader, SameClassPairs, TrainLoader

GENERATOR = torch.Generator().manual_seed(0)
DATA = LabeledImages(
    torch.randint(256, (100, 1, 4, 4), dtype=torch.uint8, generator=GENERATOR),
    torch.randint(2, 6, (100,), generator=GENERATOR),  # classes 0 and 1 have no rows
)
ROWS = torch.arange(60, 100)  # a row and its place cannot be mistaken for each other


def noise(image: Tensor) -> Tensor:
    return image + torch.rand(1)


def loader(batch_size: int = 8, seed: int = 0, kind: type[TrainLoader] = PairLoader, **arguments) -> TrainLoader:
    return kind(DATA, ROWS, batch_size, seed, **{"num_channels": 3} | arguments)


def pairs(batches) -> list[tuple[int, int]]:
    return [pair for _, _, index in batches for pair in zip(*index.view(2, -1).tolist(), strict=True)]


def test_the_first_halves_are_the_batches_without_partners():
    plain = loader(kind=TrainLoader, augmentation=noise)
    paired = loader(augmentation=noise)
    assert len(plain) == len(paired) == 5
    for _ in range(2):
        for (x, y, index), (xs, ys, indices) in zip(plain, paired, strict=True):
            assert xs.shape == (16, 3, 4, 4)
            assert torch.equal(xs[:8], x)
            assert torch.equal(ys[:8], y)
            assert torch.equal(indices[:8], index)


def test_partners_are_training_rows_of_the_same_class_with_their_own_images_and_augmentation():
    for x, y, index in loader():
        assert torch.equal(y[:8], y[8:])
        assert y.tolist() == [int(DATA.labels[row]) for row in index]
        assert torch.equal(x[:, :1], torch.stack([DATA.images[row].float() / 255 for row in index]))
        assert set(index.tolist()) <= set(ROWS.tolist())
    drawn = torch.cat([x - DATA.images[index].float() / 255 for x, _, index in loader(augmentation=noise)])[:, 0, 0, 0]
    assert len(set(drawn.mul(1e5).round().tolist())) == len(drawn) == 80  # no two images share their noise


def test_every_row_of_the_class_is_as_likely_a_partner():
    epochs = loader()
    counts = torch.zeros(100, 100)
    for _ in range(300):
        for row, partner in pairs(epochs):
            counts[row, partner] += 1
    for row in ROWS.tolist():
        own = counts[row, ROWS[DATA.labels[ROWS] == DATA.labels[row]]]
        expected = 300 / len(own)
        assert own.sum() == 300
        assert ((own - expected).abs() < 5 * expected**0.5).all()


def test_partners_change_with_the_epoch_and_the_seed():
    epochs = loader()
    orders = [dict(pairs(epochs)), dict(pairs(epochs)), dict(pairs(loader(seed=1)))]
    for first, second in itertools.combinations(orders, 2):
        alike = sum(first[row] == second[row] for row in ROWS.tolist())
        assert alike < len(ROWS) / 2


@pytest.mark.parametrize("arguments", [{}, {"drop_last": False, "batch_size": 12}, {"steps_per_epoch": 7}])
@pytest.mark.parametrize("start", range(0, 12, 3))
def test_the_pairs_go_on_from_anywhere(start, arguments):
    whole = loader(augmentation=noise, **arguments)
    truth = [*whole, *whole, *whole]
    resumed = loader(augmentation=noise, **arguments)
    resumed.load_state_dict({"position": start})
    for (x, _, index), (same_x, _, same_index) in zip(resumed, truth[start:], strict=False):
        assert torch.equal(index, same_index)
        assert torch.equal(x, same_x)


def test_two_ranks_together_see_the_pairs_and_pixels_of_one_process():
    one = loader(batch_size=8, augmentation=noise)
    ranks = [loader(batch_size=4, rank=rank, world_size=2, augmentation=noise) for rank in range(2)]
    for whole, *parts in zip(one, *ranks, strict=True):
        for value, *shares in zip(whole, *parts, strict=True):
            learning, teaching = zip(*(share.chunk(2) for share in shares), strict=True)
            assert torch.equal(value, torch.cat([*learning, *teaching]))


# ---- the data module


def test_evaluation_batches_have_no_partners():
    arguments = {"train_size": 100, "val_size": 50, "eval_batch_size": 64}
    paired, plain = SameClassPairs(MNIST(), num_channels=3, **arguments), MNISTDataModule(**arguments)
    for name in ("val_dataloader", "test_dataloader", "train_rows"):
        for batch, same in zip(getattr(paired, name)(), getattr(plain, name)(), strict=True):
            assert all(torch.equal(value, other) for value, other in zip(batch, same, strict=True))
    assert dict(paired.hparams) == dict(plain.hparams)


class Recorder(LightningModule):
    """Keeps what it was trained on: rows, and their augmented pixels."""

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.fails_at = fails_at
        self.seen: list[tuple[list[int], Tensor]] = []

    def training_step(self, batch, batch_idx):
        x, _, index = batch
        if self.trainer.global_step == self.fails_at:
            raise InterruptedError
        self.seen.append((index.tolist(), x.clone()))
        return self.weight * x.mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class SaveAll(Callback):
    """A checkpoint after every batch, and when one fails."""

    def __init__(self, folder) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer, *_):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")

    def on_exception(self, trainer, *_):
        trainer.save_checkpoint(self.folder / "failed.ckpt")


def fit(module: Recorder, *callbacks: Callback, ckpt_path=None) -> list[tuple[list[int], Tensor]]:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(callbacks=[*callbacks], enable_checkpointing=False, max_epochs=3, **quiet)
    data = SameClassPairs(MNIST(), batch_size=5, train_size=23, val_size=0, steps_per_epoch=3, augmentation=noise)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return module.seen


def test_a_resumed_run_sees_the_very_pairs_that_it_would_have_seen(tmp_path):
    truth = fit(Recorder(), SaveAll(tmp_path))
    assert len(truth) == 9
    with pytest.raises(InterruptedError):
        fit(Recorder(fails_at=4), SaveAll(tmp_path))  # of which the batch was fetched and not trained on
    for name, done in [("1", 1), ("3", 3), ("5", 5), ("failed", 4)]:
        resumed = fit(Recorder(), ckpt_path=tmp_path / f"{name}.ckpt")
        for (rows, x), (same_rows, same_x) in zip(resumed, truth[done:], strict=True):
            assert rows == same_rows
            assert torch.equal(x, same_x)
