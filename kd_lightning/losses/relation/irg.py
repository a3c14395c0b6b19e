"""Instance relationship graphs: match samples' features, their distances, and their changes between layers."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_same_shape, upcast
from kd_lightning.losses.common.connectors import layer_pairs
from kd_lightning.losses.common.relations import as_rows, squared_distances
from kd_lightning.losses.common.vectors import pooled, squared_error


def irg_loss(
    student: list[Tensor], teacher: list[Tensor], nodes: float = 0.1, edges: float = 5.0, transformations: float = 5.0
) -> Tensor:
    """Weighted sum of squared errors of nodes, edges and transformations.

    L = nodes mean (s - t)^2 + edges mean_lij (E_l(s) - E_l(t))_ij^2 + transformations mean_li (V_l(s) - V_l(t))_i^2

    with E_l(x)_ij = ||x_l,i - x_l,j||^2 and V_l(x)_i = ||a(x_l,i) - a(x_l+1,i)||^2, each divided by its maximum in the
    batch, and a(.) the average over positions. Nodes are the values of the last layer, edges the distances within each
    layer before it, transformations the changes from each of these layers to the next.

    Yufan Liu et al.: Knowledge Distillation via Instance Relationship Graph. CVPR 2019. The authors' code has edges of
    one layer or transformations of three stages, on features averaged over positions, each with weight 0.005 on half
    the sum over samples, and with the maximum held constant in the gradient. The weights here are those of a public
    collection of losses that also takes means: nodes of the logits, edges of two maps and the last features, one
    transformation.

    Other implementations differ: some also compare the changes of edges between layers; some average pairs of channels
    where the next layer is twice as wide.

    Args:
        student: Features (N, C, ...) of at least one layer, followed by the logits or other values of the teacher's
            shape.
        teacher: The same number of layers, of the same samples.
        nodes: Weight of the nodes.
        edges: Weight of the edges.
        transformations: Weight of the transformations; without effect if there is one layer before the last.

    Raises:
        UsageError: The two sides differ in the number of layers, are not the same N >= 2 samples, or differ in shape at
            the last layer; a weight is negative; or a transformation leads to another number of channels.

    Example:
        >>> layer, logits = torch.tensor([[0.0], [1.0], [3.0]]), torch.zeros(3, 2)
        >>> irg_loss([layer, logits], [layer.square(), logits + 1])
        tensor(0.2436)
    """
    _check_weights(nodes, edges, transformations)
    *layers, last = layer_pairs(student, teacher)
    if not layers:
        raise UsageError(
            "IRG compares at least one layer and the logits: list two layers or more on each side of the term"
        )
    rows = [as_rows(s, t) for s, t in layers]
    check_same_shape(*last)
    loss = nodes * squared_error(upcast(last[0]), upcast(last[1]))
    loss = loss + edges * _mean([squared_error(_edges(s), _edges(t)) for s, t in rows])
    if len(layers) > 1 and transformations:
        means = [(pooled(s), pooled(t)) for s, t in layers]
        changes = [
            squared_error(_changes(s, s_next), _changes(t, t_next)) for (s, t), (s_next, t_next) in pairwise(means)
        ]
        loss = loss + transformations * _mean(changes)
    return loss


class IRGLoss(DistillationLoss):
    """Instance relationship graphs (Liu et al. 2019); see `irg_loss`.

    Args:
        nodes: Weight of the nodes.
        edges: Weight of the edges.
        transformations: Weight of the transformations; 0 if the layers have different widths.
    """

    compares_samples = True

    def __init__(self, nodes: float = 0.1, edges: float = 5.0, transformations: float = 5.0) -> None:
        super().__init__()
        _check_weights(nodes, edges, transformations)
        self.nodes = nodes
        self.edges = edges
        self.transformations = transformations

    def forward(self, student: list[Tensor], teacher: list[Tensor], target: Tensor | None = None) -> Tensor:
        """Compute the loss of lists of features (N, C, ...), the logits last; `target` is unused."""
        return irg_loss(student, teacher, self.nodes, self.edges, self.transformations)


def _edges(rows: Tensor) -> Tensor:
    return _over_maximum(squared_distances(rows))


def _changes(before: Tensor, after: Tensor) -> Tensor:
    if before.shape[1] != after.shape[1]:
        raise UsageError(
            f"a transformation leads from {before.shape[1]} to {after.shape[1]} channels: list layers of one width "
            "before the logits, or set transformations=0"
        )
    return _over_maximum((before - after).square().sum(dim=1))


def _over_maximum(values: Tensor) -> Tensor:
    largest = values.max()
    return values / largest.masked_fill(largest < 1e-12, math.inf)


def _mean(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).mean()


def _check_weights(nodes: float, edges: float, transformations: float) -> None:
    if not all(0 <= weight < math.inf for weight in (nodes, edges, transformations)):
        raise UsageError(
            f"nodes={nodes}, edges={edges} and transformations={transformations} must be finite numbers, at least 0"
        )
