from __future__ import annotations

import math

import pytest
import torch

from kd_lightning import UsageError
from kd_lightning.data import MNIST, MNISTDataModule, ResidentDataModule, Rotated
from kd_lightning.data.split import TrainingRequest
from tests.data.shapes import Shapes


def rotated(degrees: float, **changes) -> ResidentDataModule:
    return ResidentDataModule(Rotated(MNIST(), degrees), **{"num_channels": 3} | changes)


def test_a_quarter_turn_is_exact_and_changes_nothing_else():
    plain = MNISTDataModule(train_size=100, batch_size=10)
    turned = rotated(90.0, train_size=100, batch_size=10)
    for upright, lying in (
        (plain.train_dataloader(), turned.train_dataloader()),
        (plain.val_dataloader(), turned.val_dataloader()),
        (plain.test_dataloader(), turned.test_dataloader()),
    ):
        (x, y, index), (turned_x, turned_y, turned_index) = next(iter(upright)), next(iter(lying))
        assert torch.equal(turned_x, x.rot90(1, (2, 3)))
        assert torch.equal(turned_y, y)
        assert torch.equal(turned_index, index)


def test_any_other_angle_keeps_the_middle_of_the_image():
    """The centre of mass of a digit is turned by the angle, about the middle of the image."""
    x, turned = (
        next(iter(data.test_dataloader()))[0][:, 0]
        for data in (MNISTDataModule(num_channels=1), rotated(45.0, num_channels=1))
    )
    grid = torch.arange(28.0) - 13.5
    right = [(image * grid).sum((1, 2)) / image.sum((1, 2)) for image in (x, turned)]
    down = [(image * grid[:, None]).sum((1, 2)) / image.sum((1, 2)) for image in (x, turned)]
    cos, sin = math.cos(math.pi / 4), math.sin(math.pi / 4)
    errors = torch.cat((right[1] - cos * right[0] - sin * down[0], down[1] - cos * down[0] + sin * right[0])).abs()
    assert errors.mean() < 0.05  # pixels; a few digits lose a corner
    assert (right[1] - right[0]).abs().mean() > 0.2


class Prepared(Shapes):
    """Divides its rows itself."""

    def prepare(self, request):
        self.request = request

    def split(self, request):
        return request


def test_all_but_the_images_is_the_other_sources():
    source, request = Prepared(3), TrainingRequest(10, 5, 0)
    turned = Rotated(source, 30.0)
    turned.prepare(request)
    assert source.request is request
    assert turned.split(request) is request
    assert turned.num_classes == 4
    assert turned.train().images.shape == source.train().images.shape
    assert torch.equal(turned.test().labels, source.test().labels)


def test_the_angle_must_be_finite():
    with pytest.raises(UsageError, match="degrees=nan is not a finite angle"):
        Rotated(MNIST(), math.nan)
