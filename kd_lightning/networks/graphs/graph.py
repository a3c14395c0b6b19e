"""Graph networks: convolutions over the neighbours of each node."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from kd_lightning.core.errors import UsageError


class GCNConvolution(nn.Module):
    """Graph convolution: D^-1/2 (A + I) D^-1/2 X W + b, with D the degrees of A + I.

    Thomas Kipf, Max Welling: Semi-Supervised Classification with Graph Convolutional Networks. ICLR 2017
    (arXiv:1609.02907).

    Args:
        in_features: Width of a node's features.
        out_features: Width of a node's output.

    Shapes:
        Nodes (V, in_features) and edges int64 (2, E), from the first row's nodes to the second's, without self-loops;
        output (V, out_features).
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return the new features of all nodes, (V, out_features)."""
        source, target = edge_index
        x = nn.functional.linear(x, self.linear.weight)
        scale = (_degrees(target, x) + 1).rsqrt().unsqueeze(1)
        scaled = scale * x
        return scale * scaled.index_add(0, target, scaled[source]) + self.linear.bias


class SAGEConvolution(nn.Module):
    """GraphSAGE with mean aggregation: W x_i + b + V mean_j x_j over i's neighbours j; the mean of none is 0.

    William Hamilton, Rex Ying, Jure Leskovec: Inductive Representation Learning on Large Graphs. NeurIPS 2017
    (arXiv:1706.02216).

    Args:
        in_features: Width of a node's features.
        out_features: Width of a node's output.

    Shapes:
        Nodes (V, in_features) and edges int64 (2, E), from the first row's nodes to the second's; output
        (V, out_features).
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.own = nn.Linear(in_features, out_features)
        self.neighbours = nn.Linear(in_features, out_features, bias=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return the new features of all nodes, (V, out_features)."""
        source, target = edge_index
        messages = self.neighbours(x)
        sums = torch.zeros_like(messages).index_add(0, target, messages[source])
        return self.own(x) + sums / _degrees(target, messages).clamp(min=1).unsqueeze(1)


CONVOLUTIONS = {"gcn": GCNConvolution, "sage": SAGEConvolution}


class GraphNetwork(nn.Module):
    """Classify the nodes of a graph by graph convolutions with ReLU and dropout between them.

    The graph is an input, not a part of the network, so a trained network runs on other graphs. Layer paths:
    ``convolutions.0``, ``convolutions.1``, ... output all nodes, (V, width).

    Args:
        in_features: Width of a node's features.
        hidden: Width of each layer but the last.
        num_classes: Width of the logits.
        convolution: ``gcn`` (`GCNConvolution`) or ``sage`` (`SAGEConvolution`).
        dropout: Probability of dropping a hidden value while training.

    Shapes:
        x float (V, in_features), edge_index int64 (2, E) as in torch_geometric, nodes int64 (N,); output: logits
        (N, num_classes) of those nodes, or of all V nodes if `nodes` is not given.

    Raises:
        UsageError: No hidden layer is given, or the convolution is unknown.

    Example:
        >>> network = GraphNetwork(in_features=64, hidden=[32])
        >>> network(torch.zeros(5, 64), torch.tensor([[0, 1], [1, 0]]), nodes=torch.tensor([4, 0])).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int] = (128,),
        num_classes: int = 10,
        convolution: Literal["gcn", "sage"] = "sage",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if not hidden:
            raise UsageError("hidden is empty: give the width of at least one hidden layer, e.g. hidden=[128]")
        if convolution not in CONVOLUTIONS:
            raise UsageError(f"convolution={convolution!r} is unknown: use one of {', '.join(CONVOLUTIONS)}")
        kind = CONVOLUTIONS[convolution]
        self.convolutions = nn.ModuleList(kind(*widths) for widths in pairwise([in_features, *hidden, num_classes]))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, edge_index: Tensor, nodes: Tensor | None = None) -> Tensor:
        """Return the logits of the chosen nodes, (N, num_classes)."""
        *first, last = self.convolutions
        for convolution in first:
            x = self.dropout(convolution(x, edge_index).relu())
        logits = last(x, edge_index)
        return logits if nodes is None else logits[nodes]


def _degrees(target: Tensor, like: Tensor) -> Tensor:
    """Count the edges that lead to each node, in the type of the features."""
    return torch.bincount(target, minlength=len(like)).to(like.dtype)
