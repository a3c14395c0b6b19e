from __future__ import annotations

import pytest
import torch

from kd_lightning.networks import LeNet5


def test_the_half_has_half_the_channels_of_each_layer():
    whole, half = LeNet5(in_channels=1), LeNet5(half=True, in_channels=1)
    assert [p.shape[0] for p in half.parameters()][:-2] == [p.shape[0] // 2 for p in whole.parameters()][:-2]
    assert sum(p.numel() for p in half.parameters()) == 15_738
    x = torch.rand(2, 1, 28, 28)
    assert whole(x).shape == half(x).shape == (2, 10)


def test_images_are_standardised_by_the_given_mean_and_deviation():
    torch.manual_seed(0)
    plain = LeNet5()
    told = LeNet5(standardise=(0.25, 0.5))
    told.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 28, 28)
    torch.testing.assert_close(told(images), plain((images - 0.25) / 0.5))
    with pytest.raises(
        ValueError, match=r"standardise=\(0.1, 0\) must be a finite mean and a finite deviation above 0"
    ):
        LeNet5(standardise=(0.1, 0))
