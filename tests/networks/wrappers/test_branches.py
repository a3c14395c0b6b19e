from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from kd_lightning.core.activations import tap
from kd_lightning.networks import ConvNet, StudentConvNet
from kd_lightning.networks.wrappers.branches import branch, check_branch

RESNET = ["conv1", "bn1", "relu", "maxpool", "layer1"]


class Own(nn.Module):
    """A module with parameters and no reset_parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class Net(nn.Module):
    """Two layers below the branching point and two above, combined by `forward`."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.act, self.second, self.head = nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 3)
        self.extra = nn.Dropout(0.5)
        self.join = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self, x)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build()


NETWORKS = {
    "convnet": (lambda: ConvNet(8, batch_norm=True), ["conv.0", "conv.1"], (4, 3, 28, 28)),
    "a container": (StudentConvNet, ["conv"], (4, 3, 28, 28)),
    "its children": (StudentConvNet, [*(f"conv.{i}" for i in range(6)), "pool"], (4, 3, 28, 28)),
    "resnet": (lambda: resnet18(num_classes=5), RESNET, (2, 3, 32, 32)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_branch_continues_from_the_last_shared_layer(name):
    build, shared, shape = NETWORKS[name]
    network, x = seeded(build).eval(), torch.randn(shape)
    network(x)
    upper = branch(network, shared).eval()
    assert all(isinstance(upper.get_submodule(layer), nn.Identity) for layer in shared)
    own = {k: v for k, v in network.state_dict().items() if not k.startswith(tuple(f"{layer}." for layer in shared))}
    assert upper.state_dict().keys() == own.keys()

    before = copy.deepcopy(network.state_dict())
    upper.load_state_dict(own)  # with the network's weights it is the rest of the network
    assert torch.equal(upper(tap(network, x, shared[-1:])[shared[-1]]), network(x))
    check_branch(network, shared, x)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_branch_is_newly_initialised():
    network = seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()))
    network.append(nn.MultiheadAttention(8, 2))
    network.train()
    network[:3](torch.randn(16, 4))
    upper, changed = branch(network, ["0"]), set()
    for (key, own), value in zip(network[1:].state_dict().items(), upper[1:].state_dict().values(), strict=True):
        if key.endswith(("1.weight", "1.bias", "in_proj_weight", "out_proj.weight")):
            changed.add(key)
            assert not torch.equal(own, value), key
    assert changed == {"1.weight", "1.bias", "4.in_proj_weight", "4.out_proj.weight"}
    assert torch.equal(upper[2].running_mean, torch.zeros(8))
    assert upper[2].num_batches_tracked == 0
    assert not torch.equal(branch(network, ["0"])[1].weight, upper[1].weight)  # nor are two branches alike


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        ([], r"shared is empty: name the layers up to the branching point"),
        (["conv.0", "conv.9"], r"StudentConvNet has no layer 'conv.9'; the nearest names are conv"),
        (["conv.0", "conv.0"], r"shared names 'conv.0' and 'conv.0', which are or hold the same layers: name one"),
        (["conv.0", "conv"], r"shared names 'conv.0' and 'conv'"),
    ],
)
def test_invalid_names_are_refused(shared, message):
    with pytest.raises(ValueError, match=message):
        branch(StudentConvNet(), shared)


def test_layers_that_cannot_be_initialised_are_refused():
    network = nn.Sequential(nn.Linear(8, 8), Own(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match=r"layer '1' \(Own\) has parameters and no reset_parameters\(\)"):
        branch(network, ["0"])
    assert sum(p.numel() for p in branch(network, ["0", "1"]).parameters()) == 27  # shared, it need not be


MISUSES = {
    "a layer left out": (
        lambda n, x: n.head(n.second(n.act(n.first(x)))),
        ["act"],
        r"shared=\['act'\] omits first, which run below the branching point 'act': add them in order",
    ),
    "dropout left out": (
        lambda n, x: n.head(n.second(n.act(n.extra(n.first(x))))),
        ["first", "act"],
        r"shared=\['first', 'act'\] omits extra, which run below the branching point 'act'",
    ),
    "in another order": (
        lambda n, x: n.head(n.second(n.act(n.first(x)))),
        ["act", "first"],
        "the shared layer 'act' does not run exactly once up to 'first'",
    ),
    "one that never runs": (
        lambda n, x: n.head(n.second(n.act(n.first(x)))),
        ["extra", "first", "act"],
        "the shared layer 'extra' does not run exactly once up to 'act'",
    ),
    "one that runs above again": (
        lambda n, x: n.head(n.first(n.act(n.first(x)))),
        ["first", "act"],
        "the shared layer 'first' does not run exactly once up to 'act'",
    ),
    "a connection past the branching point": (
        lambda n, x: n.head(n.second(n.act(n.first(x))) + x),
        ["first", "act"],
        r"does not continue it from 'act' \(its logits differ\): branch where everything passes through one layer",
    ),
    "something done without a module": (
        lambda n, x: n.head(n.second(n.act(n.first(x / 2)))),
        ["first", "act"],
        r"does not continue it from 'act' \(its logits differ\)",
    ),
    "an input of another shape": (
        lambda n, x: n.head(n.second(n.act(n.first(x[:, 0, :8])))),
        ["first", "act"],
        r"does not continue it from 'act' \(too many indices for tensor of dimension 2\)",
    ),
}


@pytest.mark.parametrize("name", MISUSES)
def test_wrong_shared_layers_are_found_on_a_batch(name):
    forward, shared, message = MISUSES[name]
    x = torch.randn(4, 1, 8) if name == "an input of another shape" else torch.randn(4, 8)
    with pytest.raises(ValueError, match=message):
        check_branch(seeded(lambda: Net(forward)), shared, x)


def test_a_missing_identity_normalisation_is_reported():
    network = seeded(lambda: resnet18(num_classes=5))  # in eval, a BatchNorm that has learned nothing is the identity
    with pytest.raises(ValueError, match="omits bn1, relu, maxpool, which run below the branching point 'layer1'"):
        check_branch(network, ["conv1", "layer1"], torch.randn(2, 3, 32, 32))


def test_the_check_changes_nothing():
    def forward(n: Net, x: Tensor) -> Tensor:
        return n.head(n.second(n.act(n.first(x)))) + 0 * torch.rand(())  # draws a number, in eval too

    network = seeded(lambda: nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5), Net(forward))).train()
    network[1].eval()
    before, modes = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    torch.manual_seed(1)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    check_branch(network, ["0", "1", "2.first", "2.act"], torch.randn(4, 8, generator=torch.Generator()))
    assert torch.equal(torch.rand(3), drawn)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks for module in network.modules())
