"""Parts of an output that is no tensor: elements of tuples, items of mappings, attributes of objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

from torch import Tensor


def part_of(value: object, name: str) -> object | None:
    """Return an element of a tuple or list, an item of a mapping or an attribute of an object; None if it has none.

    Example:
        >>> import torch
        >>> part_of((1, 2), "1"), part_of({"hidden": 3}, "hidden"), part_of(torch.zeros(2), "shape")
        (2, 3, None)
    """
    if isinstance(value, Tensor) or value is None:
        return None
    if isinstance(value, tuple | list) and name.removeprefix("-").isdecimal():
        items = cast("Sequence[object]", value)
        return items[int(name)] if -len(items) <= int(name) < len(items) else None
    if isinstance(value, Mapping):
        return cast("Mapping[str, object]", value).get(name)
    return getattr(value, name, None)


def tensor_parts(value: object, depth: int = 3) -> Iterator[str]:
    """Yield what leads from a value to each tensor in it: ``.0``, ``.hidden``, ``.1.0``.

    Example:
        >>> import torch
        >>> list(tensor_parts((torch.zeros(1), {"hidden": torch.zeros(1)})))
        ['.0', '.1.hidden']
    """
    if isinstance(value, Tensor):
        yield ""
        return
    items: Iterable[tuple[object, object]] = ()
    if isinstance(value, tuple | list):
        items = enumerate(cast("Sequence[object]", value))
    elif isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
    elif hasattr(value, "__dict__"):
        items = vars(value).items()
    for key, inner in items if depth else ():
        yield from (f".{key}{rest}" for rest in tensor_parts(inner, depth - 1))
