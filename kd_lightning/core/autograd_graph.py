"""The nodes of torch's graph behind a loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor


def graph_nodes(loss: Tensor) -> Iterator[Any]:
    """Yield each node of a loss's graph once; that of a leaf has the leaf as its ``variable``.

    Example:
        >>> import torch
        >>> weight = torch.ones(2, requires_grad=True)
        >>> [hasattr(node, "variable") for node in graph_nodes(weight.sum())]
        [False, True]
    """
    seen: set[Any] = set()
    nodes: list[Any] = [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        nodes += [following for following, _ in node.next_functions]
