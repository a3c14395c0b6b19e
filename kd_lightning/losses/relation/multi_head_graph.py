"""Multi-head graph distillation: who in a batch explains whom, from one layer to the next."""

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
    """Divergence of the student's graphs from the teacher's, averaged over heads and samples.

    L = 1 / HN sum_hi KL(softmax_j tanh(s_hij) || softmax_j tanh(t_hij))

    Args:
        student: Attention logits of H heads, of sample i to j, (H, N, N).
        teacher: Of the student's shape.

    Raises:
        UsageError: The shapes differ.

    Example:
        >>> multi_head_graph_loss(torch.zeros(1, 2, 2), torch.tensor([[[9.0, -9.0], [0.0, 0.0]]]))
        tensor(0.2169)
    """
    check_same_shape(student, teacher)
    log_q, log_p = (_precise(side).tanh().log_softmax(dim=-1) for side in (student, teacher))
    return (log_q.exp() * (log_q - log_p)).sum(dim=-1).mean().to(upcast(student).dtype)


class MultiHeadGraphLoss(DistillationLoss):
    """Graph-based distillation by multi-head attention.

    L = sum over consecutive layers of [multi_head_graph_loss(G(s), G(t)) + mean_n (1 - cos(e(t_l, G(t))_n, t_l+1,n))]

    A sample's features are averaged over positions and scaled to length one. H attention heads, linear maps of layer
    l + 1 (who query) and of layer l (who is key), make the graph G (H, N, N). The second part trains them, on the
    teacher alone: an estimator e finds the teacher's next layer from what the heads pick among the batch's samples at
    this one. The first part trains the student, and nothing of the heads.

    Seunghyun Lee, Byung Cheol Song: Graph-based Knowledge Distillation by Multi-head Attention Network. BMVC 2019
    (arXiv:1907.02226), with 8 heads. The authors train the heads for 40 epochs before the student and keep them then;
    here they learn along, with the term's weight. The authors compress a map to its first right singular vector, whose
    gradient is not always finite; of maps after a ReLU the average is near it. Their heads have BatchNorm, where here
    the teacher's mean and variance in the batch standardise both sides, and half of their rows are dropped at random
    while they learn. They sum over heads and samples, and clip the gradient to the task loss's. Both networks are as
    wide there; here a linear layer brings the student's features to another width of the teacher's.

    Args:
        student_channels: Widths of the student's layers, at least two.
        teacher_channels: Widths of the teacher's.
        heads: H.

    Raises:
        UsageError: There are not two layers a side, or as many; or, in a call, not the same N >= 2 samples.

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
                "must be of as many layers, two or more, and at least one head"
            )
        self.student_channels = student_channels
        self.teacher_channels = teacher_channels
        widths = zip(student_channels, teacher_channels, strict=True)
        self.connectors = nn.ModuleList(nn.Identity() if s == t else nn.Linear(s, t) for s, t in widths)
        self.graphs = nn.ModuleList(_Graph(*widths, heads) for widths in pairwise(teacher_channels))

    def forward(self, student: list[Tensor], teacher: list[Tensor], target: Tensor | None = None) -> Tensor:
        """The loss of lists of features (N, C, ...), in the order of the widths; `target` is not looked at."""
        pairs = layer_pairs(student, teacher)
        if len(pairs) != len(self.connectors):
            raise UsageError(
                f"{len(pairs)} layers came and the loss was built for {len(self.connectors)}: list as many"
            )
        for layer, pair in enumerate(pairs):
            check_samples(*pair)
            check_width(pair[0], self.student_channels[layer], "student", layer)
            check_width(pair[1], self.teacher_channels[layer], "teacher", layer)
        with torch.autocast(pairs[0][0].device.type, enabled=False):
            students = [unit(connect(to, pooled(s))) for to, (s, _) in zip(self.connectors, pairs, strict=True)]
            teachers = [unit(pooled(t)) for _, t in pairs]
            seen = [_standardised(s, like=t) for s, t in zip(students, teachers, strict=True)]
            shown = [_standardised(t, like=t) for t in teachers]
            losses: list[Tensor] = []
            for layer, graph in enumerate(self.graphs):
                frozen = {name: value.detach() for name, value in graph.named_parameters()}
                graphs = [functional_call(graph, frozen, (side[layer], side[layer + 1])) for side in (seen, shown)]
                estimate: Tensor = graph(shown[layer], shown[layer + 1], estimate=True)
                losses += [multi_head_graph_loss(*graphs), 1 - (estimate * teachers[layer + 1]).sum(dim=1).mean()]
            return torch.stack(losses).sum()


class _Graph(nn.Module):
    """Attention between two layers, and the estimator that trains it."""

    def __init__(self, width: int, next_width: int, heads: int) -> None:
        super().__init__()
        dim = (width + next_width) // 2
        self.heads = heads
        self.query = nn.Linear(next_width, heads * dim)
        self.key = nn.Linear(width, heads * dim, bias=False)  # no softmax would see it
        self.value = nn.Linear(width, dim)
        self.join = nn.Linear(heads * dim, next_width)

    def forward(self, layer: Tensor, next_layer: Tensor, estimate: bool = False) -> Tensor:
        """The graph (H, N, N); or an estimate of the next layer, of length one, from what each sample attends to."""
        query, key = connect(self.query, next_layer), connect(self.key, layer)
        query, key = (side.unflatten(1, (self.heads, -1)).transpose(0, 1) for side in (query, key))  # (H, N, D)
        graph = query @ key.mT / query.shape[2] ** 0.5
        if not estimate:
            return graph
        picked = graph.softmax(dim=-1) @ connect(self.value, layer).relu()  # (H, N, D)
        return unit(connect(self.join, picked.transpose(0, 1).flatten(1)))


def _precise(graph: Tensor) -> Tensor:
    """In double precision, where there is one: the slope of a tanh near 1 is nothing but the digits behind the 1."""
    return upcast(graph) if graph.device.type == "mps" else graph.double()


def _standardised(rows: Tensor, like: Tensor) -> Tensor:
    return (rows - like.mean(dim=0)) / (like.var(dim=0, correction=0) + 1e-5).sqrt()
