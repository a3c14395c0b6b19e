"""Building of optimizers: of parameters that there are, and with a constant that their type can hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from kd_lightning.core.errors import UsageError

EPSILON_OF_HALF = 1e-4


def build_optimizer(
    build: Callable[[Iterable[nn.Parameter]], Optimizer], parameters: Sequence[nn.Parameter], owner: str
) -> Optimizer:
    """Build the optimizer of a scheme's parameters.

    Adam and its like divide by the root of a mean square plus ``eps``. In float16 the default of 1e-8 is 0, and so is
    the square of a gradient below 2e-4: the first step of ``precision="16-true"`` would divide by 0. Such an ``eps``
    becomes 1e-4, with a warning.

    Args:
        build: Builds it.
        parameters: Those that require a gradient.
        owner: Name of their module, for the message.

    Raises:
        UsageError: There are none.

    Example:
        >>> build_optimizer(torch.optim.Adam, [], "student")
        Traceback (most recent call last):
        kd_lightning.core.errors.UsageError: no parameter of student learns: set requires_grad of some of them
    """
    if not parameters:
        raise UsageError(f"no parameter of {owner} learns: set requires_grad of some of them")
    optimizer = build(parameters)
    for group in optimizer.param_groups:
        eps = group.get("eps", 1.0)
        if torch.tensor(eps, dtype=torch.float16) == 0 and any(p.dtype == torch.float16 for p in group["params"]):
            group["eps"] = EPSILON_OF_HALF
            rank_zero_warn(
                f"eps={eps} of {type(optimizer).__name__} is 0 in float16, and a step would divide by 0: it is "
                f"{EPSILON_OF_HALF} now; set eps of the optimizer, or train with precision='16-mixed' or 'bf16-true'"
            )
    return optimizer
