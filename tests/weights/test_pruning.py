from __future__ import annotations

import pytest
import torch
from torch import nn

from kd_lightning.networks import ConvNet, LeNet5
from kd_lightning.weights.pruning import kept_channels, prune

LAYERS = ["conv.0", "conv.2", "conv.4", "classifier"]


def test_a_pruned_network_equals_the_teacher_with_the_other_filters_at_zero():
    torch.manual_seed(0)
    teacher, student = ConvNet(12), ConvNet(5)
    prune(student, teacher, LAYERS)
    kept = kept_channels(student, teacher, LAYERS)
    for name in LAYERS[:3]:
        layer = teacher.get_submodule(name)
        size = layer.weight.abs().sum((1, 2, 3))
        assert sorted(size.argsort()[-5:].tolist()) == kept[name].tolist()
        gone = [channel for channel in range(12) if channel not in kept[name]]
        layer.weight.data[gone] = 0
        layer.bias.data[gone] = 0
    images = torch.rand(3, 3, 28, 28)
    torch.testing.assert_close(student(images), teacher(images))


def test_batch_norm_keeps_the_channels_of_its_convolution():
    torch.manual_seed(0)
    teacher, student = ConvNet(6, batch_norm=True), ConvNet(3, batch_norm=True)
    teacher(torch.rand(8, 3, 28, 28))
    layers = ["conv.0.0", "conv.0.1", "conv.2.0", "conv.2.1", "conv.4.0", "conv.4.1", "classifier"]
    prune(student, teacher, layers)
    kept = kept_channels(student, teacher, layers)
    for norm, convolution in (("conv.0.1", "conv.0.0"), ("conv.4.1", "conv.4.0")):
        ours, theirs = student.get_submodule(norm), teacher.get_submodule(norm)
        assert torch.equal(ours.running_var, theirs.running_var[kept[convolution]])
        assert ours.num_batches_tracked == 1


def test_a_network_of_the_same_widths_is_a_copy():
    teacher, student = LeNet5(), LeNet5()
    layers = [name for name, module in teacher.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    prune(student, teacher, layers)
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, student.state_dict()[name])


def test_arguments_that_do_not_fit_are_refused():
    teacher, student = ConvNet(6), ConvNet(3)
    with pytest.raises(ValueError, match="layers is empty"):
        prune(student, teacher, [])
    with pytest.raises(ValueError, match=r"'conv.1' of ConvNet is not a convolution.* there are conv.0, conv.2"):
        prune(student, teacher, ["conv.1"])
    with pytest.raises(ValueError, match=r"'conv.0' has 6 outputs and only 3 to choose from"):
        prune(teacher, student, LAYERS)
    with pytest.raises(ValueError, match=r"leave out classifier.weight, classifier.bias: name every layer"):
        prune(student, teacher, LAYERS[:3])
    with pytest.raises(ValueError, match=r"'conv.2' takes 3 inputs, which the layer before does not provide"):
        prune(student, teacher, ["conv.2", "conv.0", "conv.4", "classifier"])
    twin = ConvNet(6, batch_norm=True)
    with pytest.raises(ValueError, match=r"'conv.0.1' keeps the channels of the layer before, but is the first"):
        kept_channels(twin, twin, ["conv.0.1"])
    with pytest.raises(ValueError, match="'0' is Linear in the student and Conv2d in the teacher"):
        kept_channels(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Conv2d(2, 2, 1)), ["0"])
