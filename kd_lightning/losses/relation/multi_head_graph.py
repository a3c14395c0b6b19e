"""Multi-head graph distillation: match attention between the samples of a batch, from one layer to the next."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_same_shape, check_samples, check_width, upcast
from kd_lightning.losses.common.connectors import connect, layer_pairs
from kd_lightning.losses.common.vectors import pooled, unit


def multi_head_graph_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Divergence between the student's and the teacher's graphs, averaged over heads and samples.

    L = 1 / HN sum_hi KL(softmax_j tanh(s_hij) || softmax_j tanh(t_hij))

    Args:
        student: Attention logits of H heads, from sample i to sample j, (H, N, N).
        teacher: Attention logits of the same shape.

    Raises:
        UsageError: The shapes differ.

    Example:
        >>> multi_head_graph_loss(torch.zeros(1, 2, 2), torch.tensor([[[9.0, -9.0], [0.0, 0.0]]]))
        tensor(0.2169)
    """
    check_same_shape(student, teacher)
    log_q, log_p = (upcast(side).tanh().log_softmax(dim=-1) for side in (student, teacher))
    return (log_q.exp() * (log_q - log_p)).sum(dim=-1).mean()


class MultiHeadGraphLoss(DistillationLoss):
    """Graph-based distillation by multi-head attention (Lee, Song 2019, arXiv:1907.02226).

    L = sum over consecutive layers of [multi_head_graph_loss(G(s), G(t)) + mean_n (1 - cos(e(t_l, G(t))_n, t_l+1,n))]

    A sample's features are averaged over positions and scaled to length one. H attention heads, with queries from layer
    l + 1 and keys from layer l (linear maps of both), give the graph G (H, N, N). The second part trains the heads on
    the teacher alone: an estimator e predicts the teacher's next layer from the values at this layer, averaged over the
    batch by the attention. The first part trains the student, and not the heads.

    Seunghyun Lee, Byung Cheol Song: Graph-based Knowledge Distillation by Multi-head Attention Network. BMVC 2019
    (arXiv:1907.02226), with 8 heads, and no division of the attention by the root of its width. The authors train the
    heads for 40 epochs before the student, then keep them fixed; here they are trained together, with the term's
    weight. The authors reduce a map to its first right singular vector, whose gradient is not always finite; for maps
    after a ReLU the average is close to it. Their heads have BatchNorm, where here the teacher's mean and variance in
    the batch standardise both sides, and half of their rows are dropped at random in training. They sum over heads and
    samples, and clip the gradient to that of the task loss. Both networks have the same widths there; here a linear
    layer maps the student's features to the teacher's width.

    Args:
        student_channels: Widths of the student's layers, at least two.
        teacher_channels: Widths of the teacher's layers, of the same number.
        heads: H, the number of attention heads.

    Raises:
        UsageError: A side has fewer than two layers, the two differ in number, or there is no head; at a call: the
            sides are not the same N >= 2 samples.

    Example:
        >>> loss = MultiHeadGraphLoss([2, 4], [3, 4])
        >>> loss([torch.randn(5, 2, 7, 7), torch.randn(5, 4)], [torch.randn(5, 3, 6, 6), torch.randn(5, 4)]).shape
        torch.Size([])
    """

    compares_samples = True

    def __init__(self, student_channels: list[int], teacher_channels: list[int], heads: int = 8) -> None:
        super().__init__()
        if len(student_channels) != len(teacher_channels) or len(student_channels) < 2 or heads < 1:
            raise UsageError(
                f"student_channels={student_channels}, teacher_channels={teacher_channels} and heads={heads} "
                "must name the same number of layers, at least two, and at least one head"
            )
        self.student_channels = student_channels
        self.teacher_channels = teacher_channels
        widths = zip(student_channels, teacher_channels, strict=True)
        self.connectors = nn.ModuleList(nn.Identity() if s == t else nn.Linear(s, t) for s, t in widths)
        self.graphs = nn.ModuleList(_Graph(*widths, heads) for widths in pairwise(teacher_channels))

    def forward(self, student: list[Tensor], teacher: list[Tensor], target: Tensor | None = None) -> Tensor:
        """Compute the loss of lists of features (N, C, ...), in the order of the widths; `target` is unused."""
        pairs = layer_pairs(student, teacher)
        if len(pairs) != len(self.connectors):
            raise UsageError(
                f"the term lists {len(pairs)} layers, but the loss was built for {len(self.connectors)}: list that many"
            )
        for layer, pair in enumerate(pairs):
            check_samples(*pair)
            check_width(pair[0], self.student_channels[layer], "student", layer)
            check_width(pair[1], self.teacher_channels[layer], "teacher", layer)
        with torch.autocast(pairs[0][0].device.type, enabled=False):
            students = [unit(connect(to, pooled(s))) for to, (s, _) in zip(self.connectors, pairs, strict=True)]
            teachers = [unit(pooled(t)) for _, t in pairs]
            student_rows = [_standardised(s, like=t) for s, t in zip(students, teachers, strict=True)]
            teacher_rows = [_standardised(t, like=t) for t in teachers]
            losses: list[Tensor] = []
            for layer, graph in enumerate(self.graphs):
                frozen = {name: value.detach() for name, value in graph.named_parameters()}
                graphs = [
                    functional_call(graph, frozen, (rows[layer], rows[layer + 1]))
                    for rows in (student_rows, teacher_rows)
                ]
                estimate: Tensor = graph(teacher_rows[layer], teacher_rows[layer + 1], estimate=True)
                losses += [multi_head_graph_loss(*graphs), 1 - (estimate * teachers[layer + 1]).sum(dim=1).mean()]
            return torch.stack(losses).sum()


class _Graph(nn.Module):
    """Attention between two layers, and the estimator that trains it."""

    def __init__(self, width: int, next_width: int, heads: int) -> None:
        super().__init__()
        dim = (width + next_width) // 2
        self.heads = heads
        self.query = nn.Linear(next_width, heads * dim)
        self.key = nn.Linear(width, heads * dim, bias=False)  # a bias would cancel in the softmax
        self.value = nn.Linear(width, dim)
        self.join = nn.Linear(heads * dim, next_width)

    def forward(self, layer: Tensor, next_layer: Tensor, estimate: bool = False) -> Tensor:
        """Return the graph (H, N, N); with `estimate`, a prediction of the next layer, (N, next_width)."""
        query, key = connect(self.query, next_layer), connect(self.key, layer)
        query, key = (side.unflatten(1, (self.heads, -1)).transpose(0, 1) for side in (query, key))  # (H, N, D)
        graph = query @ key.mT
        if not estimate:
            return graph
        attended = graph.softmax(dim=-1) @ connect(self.value, layer).relu()  # (H, N, D)
        return unit(connect(self.join, attended.transpose(0, 1).flatten(1)))


def _standardised(rows: Tensor, like: Tensor) -> Tensor:
    return (rows - like.mean(dim=0)) / (like.var(dim=0, correction=0) + 1e-5).sqrt()
