"""Fingerprints of a network's inputs: one integer a row, exact, cheap, and independent of the memory layout."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.stateless_random import STEP, splitmix64

_IMMUTABLE = "_kd_immutable"  # on a tensor: its rows' indices, and how often these had been written into


def row_fingerprints(inputs: Any) -> Tensor:
    r"""Compute an integer for each row of a network's input, which differs when any bit of the row differs.

    With the bits of a row read as 32-bit integers :math:`b_i` and odd pseudo-random numbers :math:`w_i`, which depend
    on the name, the dtype, the shape and the place, it is

    .. math:: \sum_i w_i \, b_i \mod 2^{64}

    Integer arithmetic gives a row the same number on every device, in every batch and memory layout. An
    expanded dimension is read once, under the sum of its weights. Of two rows that differ in one place the numbers
    always differ; of two that differ otherwise, in all but one of 2^32 choices of the weights. It finds accidents, not
    forgeries.

    Args:
        inputs: A tensor (N, ...) of any dtype, or a mapping of such tensors.

    Returns:
        int64 (N,), on the device of the inputs.

    Raises:
        UsageError: An input is not a tensor with rows, or the inputs differ in their numbers of rows.

    Example:
        >>> image = torch.zeros(1, 1, 2, 2)
        >>> first = row_fingerprints(image.expand(3, 3, 2, 2))
        >>> torch.equal(first, row_fingerprints(torch.zeros(3, 3, 2, 2))), torch.equal(first, row_fingerprints(-image))
        (True, False)
    """
    if type(inputs) is Tensor:
        return _of(inputs)
    if isinstance(inputs, Mapping):
        parts = [_of(part, name) for name, part in cast("Mapping[str, Any]", inputs).items()]
        if not parts or len({part.shape for part in parts}) > 1:
            raise UsageError(f"inputs have {[len(part) for part in parts]} rows: give tensors of equally many rows")
        return torch.stack(parts).sum(dim=0)
    return _of(inputs)


def mark_immutable(x: Tensor, index: Tensor) -> None:
    """Mark a loader's tensor as a function of its rows that no later code can write into.

    Only a tensor with an expanded dimension is marked: torch refuses to write into it, because several elements share
    one place in memory. The mark is on the object: tensors computed from it have none.

    Args:
        x: The rows, (N, ...).
        index: Their indices, int64 (N,); writing into them takes the mark away.

    Example:
        >>> x, index = torch.zeros(2, 1).expand(-1, 3), torch.tensor([4, 5])
        >>> mark_immutable(x, index)
        >>> is_marked_immutable(x, index), is_marked_immutable(x + 0, index), is_marked_immutable(x, index.clone())
        (True, False, False)
    """
    if 0 in x.stride()[1:]:
        vars(x)[_IMMUTABLE] = (index, index._version)


def is_marked_immutable(x: Any, index: Tensor) -> bool:
    """Return True if `mark_immutable` marked `x` with this very `index`, and nothing has written into `index` since."""
    note = vars(x).get(_IMMUTABLE) if type(x) is Tensor else None
    return note is not None and note[0] is index and note[1] == index._version


class _Plan(NamedTuple):
    """How tensors of one kind are read."""

    weights: Tensor
    """int64, one for each integer of a row."""
    repeated: tuple[int, ...]
    """Dimensions of which one place stands for all."""
    places: int
    """Elements of a row that are read."""
    integers: torch.dtype
    """What its bits are read as."""
    in_one_piece: bool
    """True where the elements that are read lie side by side."""
    on_cpu: bool


def _of(x: Any, name: str = "") -> Tensor:
    if not isinstance(x, Tensor) or not x.shape:
        what = f"{name!r} of the inputs" if name else "the input"
        raise UsageError(
            f"{what} is not a tensor with rows, but {type(x).__name__}: pass tensors (N, ...) to the networks"
        )
    stride = x.stride()
    plan = _plan(name, x.dtype, x.shape[1:], stride[1:], x.device)
    if x.requires_grad:
        x = x.detach()
    if plan.in_one_piece:  # in one call: after a forward pass, each costs ten times as much as alone
        x = x.as_strided((x.shape[0], plan.places), (stride[0], 1))
    else:
        for dim in plan.repeated:
            x = x.select(dim, 0)
        x = x.reshape(x.shape[0], plan.places).contiguous()
    bits = x.view(plan.integers)
    if plan.on_cpu:
        return bits.to(torch.int64).mv(plan.weights)
    return (bits * plan.weights).sum(dim=1)  # no other device multiplies matrices of integers


@lru_cache(maxsize=64)
def _plan(
    name: str, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...], device: torch.device
) -> _Plan:
    kind = sha256(f"{name} {dtype} {tuple(shape)}".encode()).digest()
    in_each = max(dtype.itemsize // 4, 1)
    weights = _odd_numbers(int.from_bytes(kind[:8], signed=True), math.prod(shape) * in_each).view(*shape, in_each)
    # from behind, so that leaving one out moves none of those that follow
    repeated = [dim for dim in reversed(range(len(shape))) if stride[dim] == 0 and shape[dim] > 1]
    for dim in repeated:
        weights = weights.sum(dim)
    places = weights.numel() // in_each
    size = 1
    in_one_piece = True
    for dim in reversed(range(len(shape))):
        if dim not in repeated and shape[dim] > 1:
            in_one_piece &= stride[dim] == size
            size *= shape[dim]
    return _Plan(
        weights.flatten().to(device),
        tuple(dim + 1 for dim in repeated),
        places,
        {1: torch.int8, 2: torch.int16}.get(dtype.itemsize, torch.int32),
        in_one_piece,
        device.type == "cpu",
    )


def _odd_numbers(start: int, count: int) -> Tensor:
    """The first numbers of SplitMix64 from a start, made odd."""
    return splitmix64(start + torch.arange(1, count + 1) * STEP) | 1
