from __future__ import annotations

import copy
import pickle
from statistics import NormalDist

import pytest
import torch
from torch import Tensor, nn

from kd_lightning import tap
from kd_lightning.networks import ConvNet, freeze
from kd_lightning.networks.wrappers.margin import MarginTeacher, batch_norm_margins

IMAGES = torch.rand(6, 3, 28, 28, generator=torch.Generator().manual_seed(0))
NORMS = ["conv.0.1", "conv.2.1", "conv.4.1"]
SHOWN = ["margins.0", "margins.1", "margins.2"]


def network() -> ConvNet:
    """Return a network with non-trivial BatchNorm parameters and running statistics."""
    torch.manual_seed(0)
    built = ConvNet(8, batch_norm=True)
    for norm in (layer for layer in built.modules() if isinstance(layer, nn.BatchNorm2d)):
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 2)
    return built.eval()


def by_hand(network: ConvNet, images: Tensor) -> list[Tensor]:
    """The values before each ReLU, bounded below by the channel's margin."""
    shown, x = [], images
    for layer in network.conv:
        x = layer(x)
        if isinstance(layer, nn.Sequential):
            low = batch_norm_margins(layer[1].weight, layer[1].bias)
            shown.append(torch.stack([x[:, c].clamp(min=low[c].item()) for c in range(8)], dim=1))
    return shown


@pytest.mark.parametrize(
    ("weight", "bias"), [(1.0, 0.0), (-0.7, 0.4), (2.0, -3.0), (0.01, 0.02), (5.0, 10.0), (1.0, -40.0)]
)
def test_the_margin_is_the_mean_of_the_negative_part(weight, bias):
    normal, steps = NormalDist(bias, abs(weight)), 200_000
    lowest = min(bias, 0) - 12 * abs(weight)
    width = -lowest / steps
    points = [lowest + (i + 0.5) * width for i in range(steps)]
    density = [normal.pdf(point) for point in points]
    expected = sum(p * d for p, d in zip(points, density, strict=True)) / sum(density)
    found = batch_norm_margins(torch.tensor([weight], dtype=torch.float64), torch.tensor([bias], dtype=torch.float64))
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_with_hardly_any_negative_values_it_is_three_deviations():
    assert batch_norm_margins(torch.tensor([2.0, -0.5]), torch.tensor([6.4, 1e4])).tolist() == [-6.0, -1.5]
    assert (
        batch_norm_margins(torch.tensor([2.0]), torch.tensor([6.1])).item() > -1.5
    )  # one in 900 is, and they are close to zero


def test_a_channel_that_does_not_vary_has_a_margin_too():
    assert batch_norm_margins(torch.zeros(3), torch.tensor([-2.0, 0.0, 2.0])).tolist() == [-2.0, 0.0, 0.0]


def test_the_output_is_unchanged_and_margins_bound_the_features_from_below():
    plain = network()
    seen = tap(MarginTeacher(copy.deepcopy(plain), NORMS), IMAGES, [*SHOWN, "network.conv.3", "logits"])
    for name, expected in zip(SHOWN, by_hand(plain, IMAGES), strict=True):
        torch.testing.assert_close(seen[name], expected, rtol=0, atol=1e-6)
        assert (seen[name] < 0).any()
    assert torch.equal(seen["logits"], plain(IMAGES))
    assert torch.equal(seen["network.conv.3"], plain.conv[:4](IMAGES))


def test_the_margins_follow_the_parameters_into_copies_and_new_weights():
    teacher = MarginTeacher(network(), ["conv.2.1"])
    for other in (copy.deepcopy(teacher), pickle.loads(pickle.dumps(teacher))):
        norm = other.network.conv[2][1]
        norm.weight.data.mul_(3)
        (expected,) = by_hand(other.network, IMAGES)[1:2]
        assert torch.equal(tap(other, IMAGES, ["margins.0"])["margins.0"], expected)
        assert not torch.equal(tap(teacher, IMAGES, ["margins.0"])["margins.0"], expected)
    assert teacher.state_dict().keys() == {f"network.{name}" for name in network().state_dict()}


def test_batch_statistics_are_those_of_training_and_nothing_changes():
    training = network().train()
    teacher = freeze(MarginTeacher(network(), NORMS, batch_statistics=True)).train()
    before = copy.deepcopy(teacher.state_dict())
    seen = tap(teacher, IMAGES, [*SHOWN, "logits"])
    for name, expected in zip(SHOWN, by_hand(training, IMAGES), strict=True):
        torch.testing.assert_close(seen[name], expected, rtol=0, atol=1e-6)
    assert not torch.allclose(seen["logits"], network()(IMAGES))
    assert teacher.training is False
    assert before.keys() == teacher.state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())


@pytest.mark.parametrize(
    ("norms", "named"), [(["conv.2"], r"conv\.2"), ([], r"\(nothing\)"), (["conv.9.1"], r"conv\.9\.1")]
)
def test_other_layers_are_refused_with_the_names_of_batch_norms(norms, named):
    with pytest.raises(
        ValueError, match=named + r" is not a BatchNorm.*choose among conv\.0\.1, conv\.2\.1, conv\.4\.1"
    ):
        MarginTeacher(network(), norms)
    with pytest.raises(ValueError, match="use a network that has one"):
        MarginTeacher(ConvNet(8), norms)
