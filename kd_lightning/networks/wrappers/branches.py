"""Branches: copies of a network's upper layers, on lower layers that run once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.core.activations import logits_of, tap
from kd_lightning.core.errors import UsageError
from kd_lightning.core.lookup import choose, network_names
from kd_lightning.core.network_call import run
from kd_lightning.core.torch_internals import reset_of


def branch(network: nn.Module, shared: Sequence[str]) -> nn.Module:
    """Copy a network's layers above the shared ones, with newly initialised parameters.

    Its input is the output of the last shared layer: ``branch(tap(network, x, shared[-1:])[shared[-1]])``.
    In the copy the shared layers are the identity, so the network must run one module after another up to the branching
    point, as `ConvNet` and torchvision's ResNet do; `check_branch` tests that on a batch. Parameters are initialised by
    each layer's ``reset_parameters``; an initialisation in the network's own constructor is not repeated.

    Args:
        network: The network; it is not changed.
        shared: Dotted names of the layers from the input up to the branching point, in the order in which they run.

    Raises:
        UsageError: A name does not exist (the nearest are given), is repeated or lies within another; or a layer has
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
    upper = _upper_layers(network, shared)
    for name, module in upper.named_modules():
        reset = reset_of(module)
        if reset is not None:
            reset()
        elif any(True for _ in module.parameters(recurse=False)):
            raise UsageError(
                f"layer {name!r} ({type(module).__name__}) has parameters and no reset_parameters(), so a branch would "
                "start from the same values: add that method to its class, or share the layer"
            )
    return upper


def check_branch(network: nn.Module, shared: Sequence[str], inputs: Any) -> None:
    """Check that the shared layers are exactly those that run below the branching point.

    A copy of the network and a branch with the same weights run once, in eval mode, and must give the same logits. The
    network, the statistics of its BatchNorms and the random number generators are unchanged.

    Args:
        network: The network that is branched.
        shared: Dotted names of the shared layers; see `branch`.
        inputs: An input of the network.

    Raises:
        UsageError: A layer below the branching point is not shared, a shared layer also runs above it, or the logits
            differ.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> check_branch(network, ["0", "1"], torch.zeros(2, 4))
        >>> check_branch(network, ["1"], torch.zeros(2, 4))
        Traceback (most recent call last):
        kd_lightning.core.errors.UsageError: shared=['1'] omits 0, which run below the branching point '1'...
    """
    branching_point, device = shared[-1], next(network.parameters()).device
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        copy, upper = deepcopy(network).eval(), _upper_layers(network, shared).eval()
        execution_order: list[str] = []
        for name, module in copy.named_modules():
            module.register_forward_hook(lambda *_, name=name: execution_order.append(name))
        activations = tap(copy, inputs, [branching_point, "logits"])
        _check_order(execution_order, shared)
        try:
            found = logits_of(run(upper, activations[branching_point]))
        except Exception as error:  # a forward pass on an input of another kind may raise anything
            found, reason = None, " ".join(str(error).split())
        else:
            reason = "its logits differ"
    logits = activations["logits"]
    tolerance = torch.finfo(logits.dtype).eps ** 0.5 * float(logits.abs().max())
    if not isinstance(found, Tensor) or found.shape != logits.shape or (found - logits).abs().max() > tolerance:
        raise UsageError(
            f"a branch with the weights of {type(network).__name__} does not continue it from {branching_point!r} "
            f"({reason}): branch where everything passes through one layer, with modules alone below"
        )


def check_layer(network: nn.Module, layer: str) -> None:
    """Check that the network has a layer of this name.

    Raises:
        UsageError: It has none; the nearest names are given.
    """
    choose(layer, network_names(network), f"{type(network).__name__} has no layer {{name}}")


def _upper_layers(network: nn.Module, shared: Sequence[str]) -> nn.Module:
    """Copy the network, with the identity in place of its shared layers."""
    if not shared:
        raise UsageError("shared is empty: name the layers up to the branching point, e.g. shared=['conv.0', 'conv.1']")
    for i, name in enumerate(shared):
        check_layer(network, name)
        if other := next((other for j, other in enumerate(shared) if j != i and _is_within(name, other)), None):
            raise UsageError(f"shared names {name!r} and {other!r}, which are or hold the same layers: name one")
    copy = deepcopy(network)
    for name in shared:
        copy.set_submodule(name, nn.Identity(), strict=True)
    return copy


def _check_order(execution_order: list[str], shared: Sequence[str]) -> None:
    """Check that every layer that ends before the branching point is shared, and that no shared layer runs after it."""
    point = execution_order.index(shared[-1])
    below = execution_order[:point]
    missing = [name for name in below if not any(_is_within(name, each) or _is_within(each, name) for each in shared)]
    if outermost := dict.fromkeys(name for name in missing if name.rpartition(".")[0] not in missing):
        raise UsageError(
            f"shared={list(shared)} omits {', '.join(outermost)}, which run below the branching point {shared[-1]!r}: "
            "add them in order"
        )
    up_to_point, after = execution_order[: point + 1], execution_order[point + 1 :]
    if above := [layer for layer in shared if layer not in up_to_point or layer in after]:
        raise UsageError(
            f"the shared layer {above[0]!r} does not run exactly once up to {shared[-1]!r}, where the branches begin: "
            "name the shared layers in order, and use separate modules above"
        )


def _is_within(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")
