from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning import load_student, tap
from kd_lightning.losses import FeatureMSELoss
from kd_lightning.networks import ConvNet, is_frozen
from kd_lightning.networks.wrappers.simkd import SimKD
from kd_lightning.weights.copying import copy_layers
from kd_lightning.weights.export import export_student

IMAGES = torch.rand(6, 3, 28, 28, generator=torch.Generator().manual_seed(0))


def teacher() -> ConvNet:
    torch.manual_seed(1)
    return ConvNet(12)


def network(student: nn.Module | None = None, **given) -> SimKD:
    torch.manual_seed(0)
    given = {"student_channels": 8, "teacher_channels": 12, "pool": 2} | given
    return SimKD(student or ConvNet(8), "conv.5", **given)


def normalised(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """BatchNorm by batch statistics, then ReLU."""
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    scaled = (x - mean) / (variance + 1e-5).sqrt() * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
    return scaled.clamp(min=0)


def by_hand(simkd: SimKD, features: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The authors' projector, then the teacher's pool and classifier."""
    convolutions = [layer for layer in simkd.features.head if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in simkd.features.head if isinstance(layer, nn.BatchNorm2d)]
    for convolution, norm, padding in zip(convolutions, norms, (0, 1, 0), strict=True):
        assert convolution.bias is None
        features = normalised(functional.conv2d(features, convolution.weight, padding=padding), norm)
    pooled = torch.stack([features[:, :, i : i + 3, j : j + 3].mean(dim=(2, 3)) for i in (0, 2) for j in (0, 2)], dim=2)
    return features, pooled.flatten(1) @ weight.T + bias


def test_it_is_the_student_the_bottleneck_and_the_teachers_classifier():
    student, source = ConvNet(8), teacher()
    simkd = copy_layers(network(student), source, {"classifier": "classifier"}).double()
    for norm in (layer for layer in simkd.features.head if isinstance(layer, nn.BatchNorm2d)):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    images, classifier = IMAGES.double(), source.double().classifier
    features, logits = by_hand(simkd, student.conv(images), classifier.weight, classifier.bias)
    seen = tap(simkd, images, ["features", "features.trunk.conv.3", "logits"])
    torch.testing.assert_close(seen["features"], features, rtol=0, atol=1e-12)
    torch.testing.assert_close(seen["logits"], logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(seen["features.trunk.conv.3"], student.conv[:4](images), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("factor", "inside"), [(1, 12), (2, 6), (4, 3), (12, 1)])
def test_the_bottleneck_is_narrower_by_the_factor(factor, inside):
    shapes = [
        tuple(layer.weight.shape) for layer in network(factor=factor).features.head if isinstance(layer, nn.Conv2d)
    ]
    assert shapes == [(inside, 8, 1, 1), (inside, inside, 3, 3), (12, inside, 1, 1)]


def test_a_larger_map_is_averaged_down_to_the_teachers():
    student = ConvNet(8)
    simkd = SimKD(student, "conv.1", student_channels=8, teacher_channels=12, size=5).eval()
    pooled = functional.adaptive_avg_pool2d(student.conv[:2](IMAGES), 5)
    assert torch.equal(simkd.features(IMAGES), simkd.features.head[1:](pooled))
    assert simkd.features(IMAGES).shape == (6, 12, 5, 5)


def test_the_classifier_is_frozen_state_and_the_students_own_is_removed():
    source = teacher()
    simkd = copy_layers(network(), source, {"classifier": "classifier"}).train()
    assert is_frozen(simkd.classifier)
    assert torch.equal(simkd.state_dict()["classifier.weight"], source.classifier.weight)
    assert not any(name.startswith("features.trunk.classifier") for name in simkd.state_dict())
    FeatureMSELoss()(simkd.features(IMAGES), source.conv(IMAGES).detach()).backward()
    for name, parameter in simkd.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == (not name.startswith("classifier.")), name


def test_the_exported_network_needs_no_teacher(tmp_path):
    simkd = copy_layers(network(), teacher(), {"classifier": "classifier"}).eval()
    path = export_student(simkd, tmp_path / "simkd.safetensors")
    again = load_student(path, network=network())
    assert torch.equal(again.eval()(IMAGES), simkd(IMAGES))


def test_invalid_arguments_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"factor=13 must lie between 1 and teacher_channels=12"):
        network(factor=13)
    with pytest.raises(ValueError, match=r"no layer 'conv\.9'.*nearest names are conv"):
        SimKD(ConvNet(8), "conv.9", 8, 12)
    with pytest.raises(ValueError, match=r"gives \(6, 8, 5, 5\), not \(N, 16, H, W\): set student_channels"):
        network(student_channels=16)(IMAGES)
