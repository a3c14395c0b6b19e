from __future__ import annotations

import math

import pytest
import torch

from kd_lightning.data import MNISTDataModule, RotatedMNISTDataModule


def test_a_quarter_turn_is_exact_and_changes_nothing_else():
    plain = MNISTDataModule(train_size=100, batch_size=10)
    turned = RotatedMNISTDataModule(90.0, train_size=100, batch_size=10)
    for upright, lying in (
        (plain.train_dataloader(), turned.train_dataloader()),
        (plain.val_dataloader(), turned.val_dataloader()),
        (plain.test_dataloader(), turned.test_dataloader()),
    ):
        (x, y, index), (turned_x, turned_y, turned_index) = next(iter(upright)), next(iter(lying))
        assert torch.equal(turned_x, x.rot90(1, (2, 3)))
        assert torch.equal(turned_y, y)
        assert torch.equal(turned_index, index)


def test_any_other_angle_keeps_what_is_in_the_middle():
    """The centre of mass of a digit is turned by the angle, about the middle of the image."""
    x, turned = (
        next(iter(data.test_dataloader()))[0][:, 0]
        for data in (MNISTDataModule(channels=1), RotatedMNISTDataModule(45.0, channels=1))
    )
    grid = torch.arange(28.0) - 13.5
    right = [(image * grid).sum((1, 2)) / image.sum((1, 2)) for image in (x, turned)]
    down = [(image * grid[:, None]).sum((1, 2)) / image.sum((1, 2)) for image in (x, turned)]
    cos, sin = math.cos(math.pi / 4), math.sin(math.pi / 4)
    errors = torch.cat((right[1] - cos * right[0] - sin * down[0], down[1] - cos * down[0] + sin * right[0])).abs()
    assert errors.mean() < 0.05  # pixels; a few digits lose a corner
    assert (right[1] - right[0]).abs().mean() > 0.2


def test_the_angle_is_remembered_and_must_be_finite():
    assert RotatedMNISTDataModule(30.0).hparams["degrees"] == 30.0
    with pytest.raises(ValueError, match="degrees=nan is not a finite angle"):
        RotatedMNISTDataModule(math.nan)
