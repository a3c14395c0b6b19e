from __future__ import annotations

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kd_lightning.callbacks import SyntheticImagesLogger
from kd_lightning.callbacks.loggers.synthetic_images import image_grid
from tests import toys
from tests.schemes.data_free.test_data_free import learner, numbers, of_the_teacher


def test_a_grid_has_every_image_in_reading_order():
    images = torch.rand(5, 3, 4, 4)
    grid = image_grid(images)
    assert grid.shape == (3, 12, 18)
    for n, image in enumerate(images):
        row, column = divmod(n, 3)
        assert torch.equal(grid[:, 6 * row + 1 : 6 * row + 5, 6 * column + 1 : 6 * column + 5], image)


def test_it_draws_every_second_epoch_without_changing_the_fit(tmp_path):
    weights = []
    for callbacks, logger in (([], False), ([SyntheticImagesLogger(9, every_n_epochs=2)], TensorBoardLogger(tmp_path))):
        ours = learner(of_the_teacher())
        toys.trainer(tmp_path, *callbacks, logger=logger, max_epochs=4).fit(ours, numbers())
        weights.append(toys.weights(ours))
    assert toys.same(*weights)
    events = EventAccumulator(str(next(tmp_path.rglob("events*")).parent)).Reload()
    assert [event.step for event in events.Images("synthetic_images")] == [16, 32]


def test_invalid_arguments_loggers_and_schemes_raise(tmp_path):
    with pytest.raises(ValueError, match="Classifier makes no synthetic images for SyntheticImagesLogger: remove"):
        toys.trainer(tmp_path, SyntheticImagesLogger()).fit(toys.classifier(), toys.data())
    with pytest.raises(ValueError, match="the logger is none: add a TensorBoardLogger"):
        toys.trainer(tmp_path, SyntheticImagesLogger()).fit(learner(of_the_teacher()), numbers())
    with pytest.raises(ValueError, match="num_images=0 and every_n_epochs=1 must be at least 1"):
        SyntheticImagesLogger(0)
