"""Attention maps are drawn when they are due, of the same images after a resume, and change nothing."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from kd_lightning import OfflineDistiller
from kd_lightning.callbacks import AttentionMapsLogger
from kd_lightning.callbacks.loggers.attention_maps import side_by_side
from tests import toys

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")


def network(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 4, stride=4), nn.BatchNorm2d(width), nn.Flatten(), nn.Dropout(), nn.Linear(49 * width, 10)
    )


def learner() -> OfflineDistiller:
    return OfflineDistiller(network(2, 1), network(3, 2), toys.terms())


def fit(folder, *callbacks, ckpt_path=None, maps: AttentionMapsLogger | None = None, **changes):
    distiller = learner()
    both = [*callbacks, *([maps] if maps else [])]
    logger = TensorBoardLogger(folder, name="", version="log")
    trainer = toys.trainer(folder, *both, **({"logger": logger} | changes))
    trainer.fit(distiller, toys.data(val_size=20), ckpt_path=ckpt_path)
    return toys.weights(distiller)


def pictures(folder) -> dict[int, bytes]:
    events = EventAccumulator(str(folder / "log"), {"images": 0})
    events.Reload()
    if "attention" not in events.Tags()["images"]:
        return {}
    return {event.step: event.encoded_image_string for event in events.Images("attention")}


def maps(**changes) -> AttentionMapsLogger:
    return AttentionMapsLogger(**{"student": ["1"], "teacher": ["0"], "images": 2, "every_n_epochs": 2} | changes)


def test_it_draws_every_second_epoch_changes_nothing_and_draws_the_same_after_a_resume(tmp_path):
    every_epoch = ModelCheckpoint(tmp_path / "kept", "epoch-{epoch}", save_top_k=-1)
    drawn = fit(tmp_path / "a", every_epoch, maps=maps(), max_epochs=4)
    assert toys.same(drawn, fit(tmp_path / "b", max_epochs=4))
    truth = pictures(tmp_path / "a")
    assert sorted(truth) == [8, 16]
    assert truth[8] != truth[16]
    fit(tmp_path / "c", ckpt_path=tmp_path / "kept/epoch-epoch=2.ckpt", maps=maps(), max_epochs=4)
    assert pictures(tmp_path / "c") == {16: truth[16]}


def test_the_picture_shows_the_mean_square_of_the_channels():
    distiller = learner().eval()
    images = torch.rand(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    picture = maps().draw(distiller, (images, torch.zeros(3, dtype=torch.long)))
    assert picture.shape == (3, 2 * (3 * 28 + 2), 3 * (3 * 28 + 2))
    side, size = 3 * 28 + 2, 3 * 28
    for n in range(2):
        for column, layer in ((1, distiller.teacher[:1]), (2, distiller.student[:2])):
            attention = torch.stack([channel**2 for channel in layer(images)[n]]).mean(0)
            tile = picture[:, n * side + 1 : (n + 1) * side - 1, column * side + 1 : (column + 1) * side - 1]
            heat = tile[:, 6::12, 6::12].sum(0) / 3
            assert tile.shape == (3, size, size)
            torch.testing.assert_close(heat, attention.detach() / attention.max())


def test_flat_images_and_maps_are_finite():
    assert side_by_side(torch.ones(1, 1, 4, 4), [torch.zeros(1, 2, 2)]).isfinite().all()


def test_what_cannot_be_drawn_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="as many on each side"):
        AttentionMapsLogger(["1"], [])
    with pytest.raises(ValueError, match="images=0"):
        maps(images=0)
    for logger, found in ((False, "none"), (CSVLogger(tmp_path), "CSVLogger")):
        with pytest.raises(ValueError, match=f"the logger is {found}: add a TensorBoardLogger"):
            fit(tmp_path, maps=maps(), logger=logger)
    with pytest.raises(ValueError, match="there are none: give the data a val_size"):
        fit(tmp_path, maps=maps(), limit_val_batches=0)
    with pytest.raises(ValueError, match=r"the student's layer '4' gives \(2, 10\), .* name a convolutional layer"):
        fit(tmp_path, maps=maps(student=["4"], every_n_epochs=1))
    with pytest.raises(ValueError, match="Classifier is no OfflineDistiller"):
        toys.trainer(tmp_path, maps()).fit(toys.classifier(), toys.data())
    with pytest.raises(ValueError, match=r"the input is \(3, 7\)"):
        maps().draw(learner(), torch.zeros(3, 7))
