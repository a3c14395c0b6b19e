from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from kd_lightning.networks import freeze, update_ema
from tests import toys


def trained(seed: int) -> nn.Module:
    """A network whose BatchNorm has seen something."""
    network = toys.network(seed=seed)
    network(torch.rand(8, 3, 28, 28))
    return network


def test_every_tensor_in_float64() -> None:
    average, steps = trained(0), [trained(seed) for seed in (1, 2, 3)]
    expected = {name: value.double() for name, value in average.state_dict().items()}
    for network, momentum in zip(steps, (0.0, 0.9, 0.999), strict=True):
        update_ema(average, network, momentum)
        for name, value in network.state_dict().items():
            counts = not value.is_floating_point()
            expected[name] = value if counts else momentum * expected[name] + (1 - momentum) * value.double()
    for name, value in average.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name].double(), rtol=1e-6, atol=1e-7, msg=name)


def test_only_the_average_changes_and_a_frozen_one_stays_frozen() -> None:
    average, network = freeze(trained(0)), trained(1)
    before = copy.deepcopy(network.state_dict())
    update_ema(average, network, 0.5)
    assert toys.same(network.state_dict(), before)
    assert not any(parameter.requires_grad for parameter in average.parameters())


class Masked(nn.Module):
    """A constant with infinities, as attention has, that no state dict holds; and a parameter that does not learn."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, -math.inf, math.inf, 0.1]), persistent=False)
        self.scale = nn.Parameter(torch.rand(1000), requires_grad=False)


def test_equal_weights_keep_every_bit() -> None:
    network = Masked()
    average = copy.deepcopy(network)
    for _ in range(100):
        update_ema(average, network, 0.999)
    assert torch.equal(average.mask, network.mask)
    assert torch.equal(average.scale, network.scale)


@pytest.mark.parametrize("momentum", [-0.1, 1.1, math.nan])
def test_a_momentum_outside_0_to_1_is_refused(momentum: float) -> None:
    with pytest.raises(ValueError, match=r"momentum=.* must lie in \[0, 1\]"):
        update_ema(nn.Linear(1, 1), nn.Linear(1, 1), momentum)


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (
            nn.Linear(4, 3),
            r"Linear has weight \(2, 4\) and Linear has weight \(3, 4\): build both networks with the same arguments",
        ),
        (nn.Linear(4, 2, bias=False), r"Linear has bias \(2,\) and Linear has no bias"),
        (nn.Sequential(nn.Linear(4, 2)), r"Linear has weight \(2, 4\) and Sequential has no weight"),
    ],
)
def test_networks_that_differ_are_refused_with_the_difference(other: nn.Module, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        update_ema(nn.Linear(4, 2), other, 0.5)


def test_buffers_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"BatchNorm1d has no running_mean and BatchNorm1d has running_mean \(3,\)"):
        update_ema(nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3), 0.5)
