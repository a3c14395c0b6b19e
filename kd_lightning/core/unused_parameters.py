"""A warning of parameters that are in an optimizer and get no gradient: heads and connectors that nothing trains."""

from __future__ import annotations

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

SHOWN = 3


def warn_of_unused(optimizer: Optimizer, module: nn.Module) -> None:
    """Warn of parameters of an optimizer that have no gradient in its first step.

    That may be meant, as of experts that a batch does not choose, so it is a warning. Layers in eval mode are passed
    over, as `kd_lightning.callbacks.TeacherFreezing` keeps them while they are not to learn.

    Args:
        optimizer: It is about to make its first step.
        module: The module that is trained.

    Example:
        >>> import warnings
        >>> import torch
        >>> head = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_of_unused(optimizer, nn.ModuleDict({"head": head}))
        >>> str(caught[0].message)[:71]
        '2 of 2 parameters of the optimizer have no gradient in its first step, '
    """
    names = {
        parameter: f"{path}.{name}" if path else name
        for path, layer in module.named_modules()
        if layer.training
        for name, parameter in layer.named_parameters(recurse=False)
    }
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    unused = [names[p] for p in parameters if p in names and p.requires_grad and p.grad is None]
    if unused:
        rest = f" and {len(unused) - SHOWN} more" if len(unused) > SHOWN else ""
        rank_zero_warn(
            f"{len(unused)} of {len(parameters)} parameters of the optimizer have no gradient in its first step, so "
            f"that nothing trains them: {', '.join(unused[:SHOWN])}{rest}: address an output that they compute by a "
            "term, or freeze them with requires_grad_(False)"
        )
