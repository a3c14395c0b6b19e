"""A network cut off at one of its layers, with a new head."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor, fx, nn

from kd_lightning.core.errors import UsageError
from kd_lightning.core.lookup import choose, network_names


class EarlyExit(nn.Module):
    """Cut a network off after one of its layers and add a head; deeper layers are removed.

    Use it to train or export an exit without the deeper layers. The modules and weights are those of `network` and
    `head`, not copies. The network is traced by ``torch.fx``, so its forward pass must not branch on values, and must
    return tensors.

    Args:
        network: Any network.
        layer: Dotted name of the last layer that is kept.
        head: Maps the output of that layer to logits.

    Raises:
        UsageError: The layer does not exist (the nearest names are given) or does not run, or the computation up to it
            depends on the training mode.

    Example:
        >>> from kd_lightning.networks import ExitHead, StudentConvNet
        >>> network = EarlyExit(StudentConvNet(), "conv.1", ExitHead(in_channels=32, channels=32, pool=2))
        >>> [name for name, _ in network.trunk.named_parameters()]
        ['conv.0.weight', 'conv.0.bias']
    """

    def __init__(self, network: nn.Module, layer: str, head: nn.Module) -> None:
        super().__init__()
        check_layers(network, [layer])
        self.trunk = _trunk(network, layer)
        self.head = head
        self.training = network.training
        if any(_trunk(deepcopy(network).train(mode), layer).code != self.trunk.code for mode in (True, False)):
            raise UsageError(
                f"{type(network).__name__} computes {layer!r} differently in training and evaluation, which a trace "
                "cannot represent: use modules, such as nn.Dropout, instead of functions"
            )

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the head's logits, (N, C)."""
        return self.head(self.trunk(*args, **kwargs))


def check_layers(network: nn.Module, layers: Sequence[str]) -> None:
    """Check that the network has all layers; else a `UsageError` with the nearest names."""
    for layer in layers:
        choose(layer, network_names(network), f"{type(network).__name__} has no layer {{name}} for an exit")


class _Tracer(fx.Tracer):
    """Trace a network without entering one of its layers."""

    def __init__(self, layer: str = "") -> None:
        super().__init__()
        self.layer = layer

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name == self.layer or super().is_leaf_module(m, module_qualified_name)


def _trunk(network: nn.Module, layer: str) -> fx.GraphModule:
    graph = _Tracer(layer).trace(network)
    last = next((node for node in graph.nodes if node.op == "call_module" and node.target == layer), None)
    if last is None:
        raise UsageError(f"layer {layer!r} does not run in {type(network).__name__}: name a layer that runs")
    for node in reversed(graph.nodes):
        if node is last:
            break
        graph.erase_node(node)
    graph.output(last)
    for node in graph.nodes:
        node.type = None  # an annotation, which torch below 2.14 cannot pickle where it is a string
    trunk = fx.GraphModule(network, graph)
    graph.eliminate_dead_code()
    trunk.delete_all_unused_submodules()
    trunk.recompile()
    return trunk
