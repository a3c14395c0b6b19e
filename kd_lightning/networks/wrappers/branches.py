"""Branches: copies of a network's upper layers, on top of lower ones that run once for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.core.activations import logits_of, run, tap
from kd_lightning.core.errors import UsageError
from kd_lightning.core.lookup import choose, network_names
from kd_lightning.core.torch_internals import reset_of


def branch(network: nn.Module, shared: Sequence[str]) -> nn.Module:
    """A further branch of a network: what is above the shared layers, initialised afresh.

    The branch takes what the last shared layer gives: ``branch(tap(network, x, shared[-1:])[shared[-1]])``. In it the
    shared layers are the identity, so it is for networks that run one module after another up to the branching point,
    such as `ConvNet` and torchvision's ResNet; `check_branch` finds out on a batch. Fresh values are those of each
    layer's ``reset_parameters``: an initialisation of the network's own making is not repeated.

    Args:
        network: The network, which stays as it is.
        shared: Dotted names of the layers from the input up to the branching point, in the order in which they run.

    Raises:
        UsageError: A name does not exist (the nearest are given), comes twice or lies in another; or a layer has
            parameters and no ``reset_parameters``.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> branch(network, ["0", "1"])
        Sequential(
          (0): Identity()
          (1): Identity()
          (2): Linear(in_features=8, out_features=3, bias=True)
        )
    """
    upper = _upper(network, shared)
    for name, module in upper.named_modules():
        reset = reset_of(module)
        if reset is not None:
            reset()
        elif any(True for _ in module.parameters(recurse=False)):
            raise UsageError(
                f"layer {name!r} ({type(module).__name__}) has parameters and no reset_parameters(), so that a branch "
                "would begin with the same values: give its class one, or share the layer"
            )
    return upper


def check_branch(network: nn.Module, shared: Sequence[str], inputs: Any) -> None:
    """Refuses shared layers that are not just what runs below the branching point.

    A copy of the network and a branch with its very weights run once, in eval: they must agree. Network, statistics of
    BatchNorm and random numbers stay as they are.

    Args:
        network: The network that is branched.
        shared: As for `branch`.
        inputs: An input of the network.

    Raises:
        UsageError: A layer below is not shared, a shared one runs above too, or the logits differ.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> check_branch(network, ["0", "1"], torch.zeros(2, 4))
        >>> check_branch(network, ["1"], torch.zeros(2, 4))
        Traceback (most recent call last):
        kd_lightning.core.errors.UsageError: below the branching point '1' there run 0 as well: name them...
    """
    point, device = shared[-1], next(network.parameters()).device
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        copy, upper = deepcopy(network).eval(), _upper(network, shared).eval()
        order: list[str] = []
        for name, module in copy.named_modules():
            module.register_forward_hook(lambda *_, name=name: order.append(name))
        seen = tap(copy, inputs, [point, "logits"])
        _check_order(order, shared)
        try:
            again = logits_of(run(upper, seen[point]))
        except Exception as error:  # a forward that was not made for this input may raise anything
            again, reason = None, " ".join(str(error).split())
        else:
            reason = "it gives other logits"
    logits = seen["logits"]
    tolerance = torch.finfo(logits.dtype).eps ** 0.5 * float(logits.abs().max())
    if not isinstance(again, Tensor) or again.shape != logits.shape or (again - logits).abs().max() > tolerance:
        raise UsageError(
            f"a branch with the weights of {type(network).__name__} does not continue it from {point!r} ({reason}): "
            "branch where everything passes through one layer, with modules alone below"
        )


class Gate(nn.Module):
    """How much each branch counts for a sample: softmax(ReLU(BatchNorm(W pool(F)))), as in ONE.

    Args:
        features: Channels of what the branches share.
        branches: How many they are.

    Shapes:
        Input (N, features) or (N, features, H, W), which is averaged over H and W; output (N, branches), rows of sum 1.

    Example:
        >>> Gate(features=8, branches=2)(torch.zeros(3, 8, 5, 5))[0]
        tensor([0.5000, 0.5000], grad_fn=<SelectBackward0>)
    """

    def __init__(self, features: int, branches: int) -> None:
        super().__init__()
        self.features = features
        self.linear = nn.Linear(features, branches)
        self.norm = nn.BatchNorm1d(branches)

    def forward(self, features: Tensor) -> Tensor:
        """The weights (N, branches)."""
        if features.dim() not in (2, 4) or features.shape[1] != self.features:
            raise UsageError(
                f"a gate of {self.features} features was given {tuple(features.shape)}: set gate_features to the "
                "channels of the last shared layer, which must give (N, C) or (N, C, H, W)"
            )
        pooled = features.mean(dim=(2, 3)) if features.dim() == 4 else features
        return self.norm(self.linear(pooled)).relu().softmax(dim=1)


class BranchedEnsemble(nn.Module):
    """A network, further branches of it, and the gate that weighs them, as one network: z_e = sum_i g_i z_i.

    Args:
        network: The first branch, with the layers that all of them share.
        layer: Where the others begin: the last shared layer.
        branches: The others, as `branch` makes them.
        gate: Gives the weights (N, branches) of all, `network` first, from what `layer` gives.
    """

    def __init__(self, network: nn.Module, layer: str, branches: Iterable[nn.Module], gate: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.layer = layer
        self.branches = nn.ModuleList(branches)
        self.gate = gate

    def forward(self, inputs: Any) -> Tensor:
        """The logits of the ensemble."""
        return self.all_logits(inputs)[1]

    def all_logits(self, inputs: Any) -> tuple[list[Tensor], Tensor]:
        """The logits of each branch, and those of the ensemble."""
        seen = tap(self.network, inputs, [self.layer, "logits"])
        features = seen[self.layer]
        logits = [seen["logits"], *(branch(features) for branch in self.branches)]
        # n = batch, k = branches
        return logits, torch.einsum("nk,nk...->n...", self.gate(features), torch.stack(logits, dim=1))


def check_layer(network: nn.Module, layer: str) -> None:
    """A ValueError with the nearest names unless the network has such a layer."""
    choose(layer, network_names(network), f"{type(network).__name__} has no layer {{name}}")


def _upper(network: nn.Module, shared: Sequence[str]) -> nn.Module:
    """A copy of the network, with the identity for its shared layers."""
    if not shared:
        raise UsageError("shared is empty: name the layers up to the branching point, e.g. shared=['conv.0', 'conv.1']")
    for i, name in enumerate(shared):
        check_layer(network, name)
        if around := next((other for j, other in enumerate(shared) if j != i and _is_in(name, other)), None):
            raise UsageError(f"shared names {name!r} and {around!r}, which are or hold the same layers: name one")
    copy = deepcopy(network)
    for name in shared:
        copy.set_submodule(name, nn.Identity(), strict=True)
    return copy


def _check_order(order: list[str], shared: Sequence[str]) -> None:
    """What came to its end before the branching point must be shared, and nothing that is shared may come after."""
    point = order.index(shared[-1])
    missing = [
        name for name in order[:point] if not any(_is_in(name, layer) or _is_in(layer, name) for layer in shared)
    ]
    if outermost := dict.fromkeys(name for name in missing if name.rpartition(".")[0] not in missing):
        raise UsageError(
            f"below the branching point {shared[-1]!r} there run {', '.join(outermost)} as well: "
            "name them in shared, in order"
        )
    if above := [layer for layer in shared if layer not in order[: point + 1] or layer in order[point + 1 :]]:
        raise UsageError(
            f"the shared layer {above[0]!r} does not run just once before {shared[-1]!r}, where the branches begin: "
            "name the shared layers in order, and give what runs above modules of its own"
        )


def _is_in(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")
