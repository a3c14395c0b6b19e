"""Local structure preserving: match each node's similarities to its neighbours in a graph."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_temperature, upcast


def lsp_loss(student: Tensor, teacher: Tensor, target: Tensor, sigma: float | None = None) -> Tensor:
    """Divergence between the student's and the teacher's similarity distributions over each node's neighbours.

    L = 1/V sum_i sum_j s_ij log(s_ij / t_ij), with s_i. = softmax_j(exp(-||x_i - x_j||^2 / (2 sigma))) over the
    neighbours j of i

    where an edge leads from j to i. A node without neighbours contributes 0. The widths of the two sides may differ.

    Yiding Yang et al.: Distilling Knowledge from Graph Convolutional Networks. CVPR 2020 (arXiv:2003.10477), with its
    radial kernel. Their published code uses exp(-||x_i - x_j||_1 / 100) and the reverse divergence.

    With one number sigma for both sides the kernels of a wide layer are all 0, or all 1, and the loss with them. The
    default is ours: 2 sigma is each side's mean of ||x_i - x_j||^2 over the edges, so that the loss does not depend on
    the scale and width of the features, as that of RKD does not.

    Args:
        student: Features of all nodes, (V, D).
        teacher: Features of the same nodes, (V, D').
        target: Edges, int64 (2, E).
        sigma: Width of the kernel on both sides, above 0; if not given, half of each side's mean squared distance.

    Raises:
        UsageError: The two sides have different nodes, `target` is not int64 (2, E), or `sigma` is not above 0.

    Example:
        >>> nodes, edges = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0, 2], [1, 1]])
        >>> lsp_loss(nodes, 2 * nodes, edges, sigma=1.0)
        tensor(0.0046)
    """
    if sigma is not None:
        check_temperature(sigma, "sigma")
    if student.dim() != 2 or teacher.dim() != 2 or len(student) != len(teacher):
        raise UsageError(
            f"student features {tuple(student.shape)} and teacher features {tuple(teacher.shape)} must be (V, D) and "
            "(V, D') of the same nodes: address layers whose output is all nodes of the graph"
        )
    if target.dim() != 2 or len(target) != 2 or target.is_floating_point():
        raise UsageError(
            f"edges {tuple(target.shape)} of {target.dtype} must be int64 (2, E): set the term's target to the edges"
        )
    log_s, log_t = (_log_similarity(upcast(x), target, sigma) for x in (student, teacher))
    return (log_s.exp() * (log_s - log_t)).sum() / len(student)


class LSPLoss(DistillationLoss):
    """Local structure preserving (Yang et al. 2020); see `lsp_loss`. The term's target is the edge index.

    Args:
        sigma: Width of the kernel, above 0; if not given, half of each side's mean squared distance over the edges.
    """

    needs_target = True

    def __init__(self, sigma: float | None = None) -> None:
        super().__init__()
        self.sigma = None if sigma is None else check_temperature(sigma, "sigma")

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of nodes (V, D) and (V, D') on edges int64 (2, E)."""
        return lsp_loss(student, teacher, target, self.sigma)


def _log_similarity(nodes: Tensor, edges: Tensor, sigma: float | None) -> Tensor:
    """Compute log-softmax of the kernel over the edges that lead to the same node, one value an edge."""
    source, target = edges
    squares = (nodes[source] - nodes[target]).square().sum(dim=1)
    scale = squares.sum() / max(len(squares), 1) if sigma is None else squares.new_tensor(2 * sigma)
    kernel = (-squares / scale.masked_fill(scale == 0, 1)).exp()
    # the kernel is at most 1, so the exponentials cannot overflow
    sums = torch.zeros(len(nodes), dtype=kernel.dtype, device=nodes.device).index_add(0, target, kernel.exp())
    return kernel - sums.log()[target]
