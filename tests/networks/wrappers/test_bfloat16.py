from __future__ import annotations

import torch
from torch import nn

from kd_lightning import OfflineDistiller, freeze, tap
from kd_lightning.networks import BFloat16Autocast, ConvNet
from tests import toys


def networks() -> tuple[ConvNet, BFloat16Autocast]:
    torch.manual_seed(0)
    network = ConvNet(16)
    return network, BFloat16Autocast(network)


def test_logits_equal_those_of_float32_up_to_bfloat16_rounding():
    network, half = networks()
    x = torch.rand(8, 3, 28, 28)
    expected, found = network(x), half(x)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 0.02 * expected.abs().max()
    assert half.network is network
    assert all(weight.dtype == torch.float32 for weight in half.parameters())


def test_layers_can_be_tapped_and_gradients_flow():
    _, half = networks()
    x = torch.rand(8, 3, 28, 28, requires_grad=True)
    seen = tap(freeze(half), x, ["network.conv.3", "logits"])
    assert seen["network.conv.3"].dtype == torch.bfloat16
    seen["logits"].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_other_outputs_and_named_inputs_pass_through():
    class Answers(nn.Module):
        def forward(self, image):
            return {"logits": image.flatten(1)}

    assert BFloat16Autocast(Answers())(image=torch.zeros(2, 3))["logits"].shape == (2, 3)


def test_it_works_as_a_teacher(tmp_path):
    _, half = networks()
    learner = OfflineDistiller(ConvNet(4), half, toys.terms())
    before = toys.weights(learner)
    toys.trainer(tmp_path, max_epochs=1).fit(learner, toys.data())
    after = toys.weights(learner)
    assert not toys.same(before, after)
    assert all(value.isfinite().all() and value.dtype != torch.bfloat16 for value in after.values())
