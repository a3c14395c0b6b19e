"""A network that ends at one of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor, fx, nn

from kd_lightning.core.errors import UsageError
from kd_lightning.core.lookup import choose, network_names


class EarlyExit(nn.Module):
    """A network up to one of its layers, and a head on it: what is behind the layer is not there.

    It is what an exit is alone: to be trained without the deeper layers, or to be deployed. Modules and weights are
    those of `network` and `head` themselves, not copies. The network is traced by ``torch.fx``, so its forward pass may
    not branch on values, and gives tensors.

    Args:
        network: Any network.
        layer: Dotted name of the layer that the head stands on.
        head: Gives logits of what the layer gives.

    Raises:
        UsageError: There is no such layer (the nearest names are given), it does not run, or the way to it is another
            in eval.

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
                f"what {type(network).__name__} does up to {layer!r} depends on whether it trains, which a trace does "
                "not keep: use modules, such as nn.Dropout, in place of functions"
            )

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Logits (N, C)."""
        return self.head(self.trunk(*args, **kwargs))


def check_layers(network: nn.Module, layers: Sequence[str]) -> None:
    """A ValueError with the nearest names unless all layers are in the network."""
    for layer in layers:
        choose(layer, network_names(network), f"{type(network).__name__} has no layer {{name}} for an exit to stand on")


class _Tracer(fx.Tracer):
    """Takes one layer for a whole, whatever is in it."""

    def __init__(self, layer: str = "") -> None:
        super().__init__()
        self.layer = layer

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name == self.layer or super().is_leaf_module(m, module_qualified_name)


def _trunk(network: nn.Module, layer: str) -> fx.GraphModule:
    graph = _Tracer(layer).trace(network)
    last = next((node for node in graph.nodes if node.op == "call_module" and node.target == layer), None)
    if last is None:
        raise UsageError(f"layer {layer!r} does not run in {type(network).__name__}: name one that takes part in it")
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
