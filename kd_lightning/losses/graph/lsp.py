"""Local structure preserving: how like its neighbours each node of a graph is."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_temperature, upcast


def lsp_loss(student: Tensor, teacher: Tensor, target: Tensor, sigma: float = 10.0) -> Tensor:
    """How differently student and teacher spread each node's likeness over its neighbours.

    L = 1/V sum_i sum_j s_ij log(s_ij / t_ij), with s_i. = softmax_j(exp(-||x_i - x_j||^2 / (2 sigma))) over the
    neighbours j of i

    where an edge leads from j to i; a node without any counts 0. The widths of the two sides may differ.

    Yiding Yang et al.: Distilling Knowledge from Graph Convolutional Networks. CVPR 2020 (arXiv:2003.10477), with its
    radial kernel. Their published code takes exp(-||x_i - x_j||_1 / 100) and the divergence the other way round.

    Args:
        student: Features of all nodes, (V, D).
        teacher: Features of the same nodes, (V, D').
        target: Edges, int64 (2, E).
        sigma: Width of the kernel; above 0.

    Raises:
        UsageError: The two sides are not of the same nodes, the edges are none of them, or `sigma` is not above 0.

    Example:
        >>> nodes, edges = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0, 2], [1, 1]])
        >>> lsp_loss(nodes, 2 * nodes, edges, sigma=1.0)
        tensor(0.0046)
    """
    check_temperature(sigma, "sigma")
    if student.dim() != 2 or teacher.dim() != 2 or len(student) != len(teacher):
        raise UsageError(
            f"LSP compares nodes (V, D) with the same nodes (V, D'), not {tuple(student.shape)} with "
            f"{tuple(teacher.shape)}: tap layers that give all nodes of the graph"
        )
    if target.dim() != 2 or len(target) != 2 or target.is_floating_point():
        raise UsageError(f"edges {tuple(target.shape)} of {target.dtype} must be int64 (2, E): set the term's target")
    ours, theirs = (_log_likeness(upcast(x), target, sigma) for x in (student, teacher))
    return (ours.exp() * (ours - theirs)).sum() / len(student)


class LSPLoss(DistillationLoss):
    """Local structure preserving (Yang et al. 2020); see `lsp_loss`. The term's target is the edges.

    Args:
        sigma: Width of the kernel; above 0.
    """

    needs_target = True

    def __init__(self, sigma: float = 10.0) -> None:
        super().__init__()
        self.sigma = check_temperature(sigma, "sigma")

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of nodes (V, D) and (V, D') on edges int64 (2, E)."""
        return lsp_loss(student, teacher, target, self.sigma)


def _log_likeness(nodes: Tensor, edges: Tensor, sigma: float) -> Tensor:
    """Of each edge, the log of its share among those that lead to its node."""
    source, target = edges
    likeness = (-(nodes[source] - nodes[target]).square().sum(dim=1) / (2 * sigma)).exp()
    # a kernel is at most 1, so that no exponential needs a maximum to be taken off
    sums = torch.zeros(len(nodes), dtype=likeness.dtype, device=nodes.device).index_add(0, target, likeness.exp())
    return likeness - sums.log()[target]
