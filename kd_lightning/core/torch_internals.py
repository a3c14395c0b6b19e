"""Private names of torch that this package touches, each under a plain name.

`tests/test_lightning_contract.py` asserts each of them by name.
"""

# pyright: reportPrivateUsage=false
from __future__ import annotations

from torch.optim import Optimizer


def has_step_hooks(optimizer: Optimizer) -> bool:
    """Tell if hooks are registered before or after the optimizer's step."""
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)
