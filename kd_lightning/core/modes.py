"""Modes of networks: one that learns and was left in eval has no dropout, and its BatchNorm learns no statistics."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from kd_lightning.core.errors import UsageError
from kd_lightning.core.freezing import is_frozen
from kd_lightning.core.torch_internals import BatchNorm, Dropout


def networks_of(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the networks that are attributes of a scheme, or stand in its lists of networks, by their names.

    Example:
        >>> peers = nn.ModuleDict({"student": nn.Linear(2, 2), "peers": nn.ModuleList([nn.ReLU()])})
        >>> [name for name, _ in networks_of(peers)]
        ['student', 'peers.0']
    """
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from ((f"{name}.{inner}", network) for inner, network in networks_of(child))
        else:
            yield name, child


def check_in_training(network: nn.Module, name: str) -> None:
    """Check that a network that learns is in training mode, where that makes a difference.

    A network whose single layers are in eval mode, such as a frozen BatchNorm, is in training mode itself.

    Raises:
        UsageError: It was left in eval mode.

    Example:
        >>> check_in_training(nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval(), "the student")
        Traceback (most recent call last):
        kd_lightning.core.errors.UsageError: the student is in eval mode, so that its '1' (Dropout) does nothing ...
    """
    if network.training or is_frozen(network) or not any(p.requires_grad for p in network.parameters()):
        return
    for layer, module in network.named_modules():
        if depends_on_mode(module):
            effect = "learns no statistics" if isinstance(module, BatchNorm) else "does nothing"
            raise UsageError(
                f"{name} is in eval mode, so that its {layer!r} ({type(module).__name__}) {effect} in training: call "
                "train() on the network before the fit, and eval() only on layers that are meant to stay as they are"
            )


def depends_on_mode(module: nn.Module) -> bool:
    """Tell if a layer computes something else in training than in evaluation: BatchNorm and dropout."""
    if isinstance(module, Dropout):
        return module.p > 0
    if isinstance(module, BatchNorm):
        return True
    dropout = getattr(module, "dropout", 0.0)  # of recurrent layers and attention
    return isinstance(dropout, float) and dropout > 0
