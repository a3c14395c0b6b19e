"""Rows of a batch that a training step has permuted or mixed before the student got them, so that labels do not fit."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 16
"""Rows that are compared with all rows of the batch."""
CLOSE = 1e-4
"""Share of a row's variance that a fit of a mixture may leave."""


def are_mixed(seen: Tensor, given: Tensor) -> bool:
    r"""Tell if rows that a network got are other rows of the batch, parts of them, or mixtures with them.

    Row i is mixed if :math:`x'_i = a x_i + b x_j + c` for another row j with b above 0, or if all that differs from
    :math:`x_i` equals :math:`x_j` there, as in CutMix. A change of a row by itself, such as a normalisation or an
    augmentation, is no mixture. It waits for the device.

    Args:
        seen: The network's input, (N, ...).
        given: The batch, (N, ...); of another shape than `seen` the answer is False.

    Example:
        >>> x = torch.randn(4, 20)
        >>> are_mixed(2 * x + 1, x), are_mixed(x[[1, 2, 3, 0]], x), are_mixed(0.7 * x + 0.3 * x.flip(0), x)
        (False, True, True)
    """
    if seen.shape != given.shape or seen.dim() < 2 or len(seen) < 2 or torch.equal(seen, given):
        return False
    if seen.dim() > 2:  # one channel, or token: each may be normalised differently
        seen, given = seen[:, 0], given[:, 0]
    rows, others = seen.detach().flatten(1).double(), given.detach().flatten(1).double()
    return any(_is_mixed(row, others, i) for i, row in enumerate(rows[:ROWS]))


def _is_mixed(row: Tensor, others: Tensor, own: int) -> bool:
    differs = row != others[own]
    if not bool(differs.any()):
        return False
    is_other = torch.arange(len(others), device=others.device) != own
    pasted = others[:, differs]
    if bool(((pasted == row[differs]).all(dim=1) & is_other & (pasted.amin(dim=1) < pasted.amax(dim=1))).any()):
        return True
    # n = other rows, d = values: what is left of the row once its own, and then another one, is taken out
    row, centred = row - row.mean(), others - others.mean(dim=1, keepdim=True)
    left = _without(row, centred[own])
    total = row.square().sum()
    if row.numel() < 8 or bool(left.square().sum() <= CLOSE * total):
        return False
    directions = torch.stack([_without(other, centred[own]) for other in centred])
    norms = directions.square().sum(dim=1)
    usable = is_other & (norms > CLOSE * centred.square().sum(dim=1).clamp(min=1e-30))
    share = (directions @ left) / norms.clamp(min=1e-30)
    residual = (left - share[:, None] * directions).square().sum(dim=1)
    return bool((usable & (share > 0) & (residual <= CLOSE * left.square().sum())).any())


def _without(values: Tensor, direction: Tensor) -> Tensor:
    norm = direction.square().sum()
    return values - (values @ direction) / norm.clamp(min=1e-30) * direction
