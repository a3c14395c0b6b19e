from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.networks import ConvNet, StudentConvNet
from kd_lightning.networks.wrappers.fusion import FeatureFusion


def member(width: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, width, 3, stride=stride), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)
    )


def normalised(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """BatchNorm by batch statistics."""
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    scale, shift = norm.weight.view(1, -1, 1, 1), norm.bias.view(1, -1, 1, 1)
    return (x - mean) / (variance + norm.eps).sqrt() * scale + shift


def fused(fusion: FeatureFusion, maps: Tensor) -> Tensor:
    """The fusion module as loops over channels."""
    depthwise, norm, _, pointwise, norm2, _ = fusion.fusion
    n, channels, height, width = maps.shape
    padded = torch.zeros(n, channels, height + 2, width + 2, dtype=maps.dtype)
    padded[:, :, 1:-1, 1:-1] = maps
    spread = torch.zeros_like(maps)
    for c in range(channels):
        for i in range(3):
            for j in range(3):
                spread[:, c] += depthwise.weight[c, 0, i, j] * padded[:, c, i : i + height, j : j + width]
    spread = normalised(spread, norm).clamp(min=0)
    mixed = torch.stack([sum(w[c, 0, 0] * spread[:, c] for c in range(channels)) for w in pointwise.weight], dim=1)
    mixed = normalised(mixed, norm2).clamp(min=0)
    pooled = mixed.sum(dim=(2, 3)) / (height * width)
    return pooled @ fusion.classifier.weight.T + fusion.classifier.bias


def test_the_logits_equal_the_formula():
    torch.manual_seed(0)
    members = [member(3), member(5)]
    fusion = FeatureFusion(members, ["1", "1"], [3, 5], num_classes=4).double()
    assert fusion.fusion[0].weight.shape == (8, 1, 3, 3)
    assert fusion.fusion[3].weight.shape == (5, 8, 1, 1)  # down to the widest member, as 2 C to C in the authors' code
    for norm in (fusion.fusion[1], fusion.fusion[4]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(6, 2, 7, 8, dtype=torch.float64)
    logits, together = fusion.all_logits(x)
    maps = torch.cat([network[:2](x) for network in members], dim=1)
    assert torch.allclose(together, fused(fusion, maps), rtol=0, atol=1e-12)
    assert all(torch.equal(own, network(x)) for own, network in zip(logits, members, strict=True))
    assert torch.equal(fusion.eval()(x), fusion.all_logits(x)[1])
    assert not torch.allclose(fusion(x), together)  # in eval, by the running statistics


def test_maps_of_different_sizes_are_averaged_down():
    torch.manual_seed(0)
    members = [member(3), member(5, stride=2)]
    fusion = FeatureFusion(members, ["1", "1"], [3, 5]).double()
    x = torch.randn(6, 2, 10, 14, dtype=torch.float64)
    large, small = (network[:2](x) for network in members)
    assert (large.shape[2:], small.shape[2:]) == ((8, 12), (4, 6))
    quarters = sum(large[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
    assert torch.allclose(fusion(x), fused(fusion, torch.cat([quarters, small], dim=1)), rtol=0, atol=1e-12)


def test_each_member_has_the_gradient_of_the_fused_logits():
    fusion = FeatureFusion([StudentConvNet(), ConvNet(8)], ["conv.5", "conv.5"], [32, 8])
    fusion(torch.randn(4, 3, 28, 28)).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in fusion.named_parameters()}
    for name, gradient in gradients.items():
        assert (gradient is None) == ("classifier" in name and "members" in name), name


NETWORK = StudentConvNet()


@pytest.mark.parametrize(
    ("members", "layers", "channels", "message"),
    [
        ([NETWORK], ["conv.5"], [32], "1 members, 1 layers and 1 channels: give at least two members"),
        ([NETWORK, ConvNet(8)], ["conv.5"], [32, 8], "2 members, 1 layers and 2 channels"),
        ([NETWORK, ConvNet(8)], ["conv.5", "conv.5"], [32], "2 members, 2 layers and 1 channels"),
        ([NETWORK, ConvNet(8)], ["conv.5", "conf.5"], [32, 8], "ConvNet has no layer 'conf.5'; the nearest .* conv.5"),
        ([NETWORK, NETWORK], ["conv.5", "conv.5"], [32, 32], "two members share parameters"),
    ],
)
def test_invalid_members_are_refused(members, layers, channels, message):
    with pytest.raises(ValueError, match=message):
        FeatureFusion(members, layers, channels)


@pytest.mark.parametrize(("layer", "shape"), [("conv.5", r"\(2, 8, 5, 5\)"), ("classifier", r"\(2, 10\)")])
def test_a_layer_with_another_output_is_refused(layer, shape):
    fusion = FeatureFusion([StudentConvNet(), ConvNet(8)], ["conv.5", layer], [32, 10])
    with pytest.raises(ValueError, match=rf"layer '{layer}' of member 1 gives {shape}, not \(N, 10, H, W\)"):
        fusion(torch.zeros(2, 3, 28, 28))
