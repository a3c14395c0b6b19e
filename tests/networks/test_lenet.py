from __future__ import annotations

import torch

from kd_lightning.networks import LeNet5


def test_the_half_has_half_the_channels_of_each_layer():
    whole, half = LeNet5(in_channels=1), LeNet5(half=True, in_channels=1)
    assert [p.shape[0] for p in half.parameters()][:-2] == [p.shape[0] // 2 for p in whole.parameters()][:-2]
    assert sum(p.numel() for p in half.parameters()) == 15_738
    x = torch.rand(2, 1, 28, 28)
    assert whole(x).shape == half(x).shape == (2, 10)
