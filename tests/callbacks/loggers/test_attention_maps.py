"""Attention maps are drawn in every n-th epoch, of the same images after a resume, without changing the fit."""

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
from kd_lightning.schemes import FrozenTeacher
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
    return AttentionMapsLogger(**{"student": ["1"], "teacher": ["0"], "num_images": 2, "every_n_epochs": 2} | changes)


def test_it_draws_every_second_epoch_without_changing_the_fit_and_the_same_after_a_resume(tmp_path):
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


class OtherScheme(FrozenTeacher):
    """A scheme with a frozen teacher that is no `OfflineDistiller`."""

    def __init__(self) -> None:
        super().__init__(network(2, 1), toys.terms())
        self.teacher = network(3, 2)

    def compute_losses(self, batch):
        batch = self.split_batch(batch)
        return self.term_losses(self.student_activations(batch), self.teacher_activations(batch), batch.labels)


def test_any_scheme_with_a_frozen_teacher_can_be_drawn(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="log")
    toys.trainer(tmp_path, maps(every_n_epochs=1), logger=logger, max_epochs=1).fit(
        OtherScheme(), toys.data(val_size=20)
    )
    assert sorted(pictures(tmp_path)) == [4]


def test_flat_images_and_maps_are_finite():
    assert side_by_side(torch.ones(1, 1, 4, 4), [torch.zeros(1, 2, 2)]).isfinite().all()


def test_invalid_arguments_loggers_and_layers_raise(tmp_path):
    with pytest.raises(ValueError, match="as many on each side"):
        AttentionMapsLogger(["1"], [])
    with pytest.raises(ValueError, match="num_images=0"):
        maps(num_images=0)
    for logger, found in ((False, "none"), (CSVLogger(tmp_path), "CSVLogger")):
        with pytest.raises(ValueError, match=f"the logger is {found}: add a TensorBoardLogger"):
            fit(tmp_path, maps=maps(), logger=logger)
    with pytest.raises(ValueError, match="there are none: set val_size of the data"):
        fit(tmp_path, maps=maps(), limit_val_batches=0)
    with pytest.raises(
        ValueError, match=r"the student's layer '4' has the output \(2, 10\), .* name a convolutional layer"
    ):
        fit(tmp_path, maps=maps(student=["4"], every_n_epochs=1))
    with pytest.raises(ValueError, match="Classifier has no frozen teacher"):
        toys.trainer(tmp_path, maps()).fit(toys.classifier(), toys.data())
    with pytest.raises(ValueError, match=r"the input is \(3, 7\)"):
        maps().draw(learner(), torch.zeros(3, 7))
