"""Graph distillation: who teaches the student, and how much, is a graph that is learned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd_lightning.core.errors import UsageError, WidthError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_not_negative, upcast
from kd_lightning.losses.common.vectors import unit


class ModalityGraphLoss(DistillationLoss):
    """The student imitates several teachers, each as far as an edge that is learned says, sample by sample.

    L = 10 sum_k w_k (1 - cos(z_S, z_k)) + 1 sum_k w_k (1 - cos(V_k h_S, h_k)) + 10 sum_k (mean_n e_k - p_k)^2, the
    first two averaged over the samples, with w_k = e_k + p_k and the edges of a sample
    e_k = softmax_k(alpha (a^T z_k + b_k^T h_k + c_k)), where z are a network's logits and h is its representation

    Zelun Luo, Jun-Ting Hsieh, Lu Jiang, Juan Carlos Niebles, Li Fei-Fei: Graph Distillation for Action Detection with
    Privileged Modalities. ECCV 2018 (arXiv:1712.00108), with the constants of their code. The last part holds the
    batch's mean edges near a prior; with alpha 0 the edges are uniform and nothing is learned. Their kernel sees the
    student's z and h as well, and adds what it makes of them to every teacher's score, which a softmax takes out again;
    its two linear maps, one after the other, are one. Their networks are of one width; here a linear map V_k leads from
    the student's representation to each teacher's. Without representations, there are the logits' edges alone.

    Its term addresses ``student: [logits, <layer>]``, ``teacher: [logits, <a layer of each member>]``, or the logits
    alone; the teachers are a `ModalityEnsemble`, which sees what the student will not, or an `Ensemble`, which sees the
    same, as in Chenrui Zhang, Yuxin Peng: Better and Faster: Knowledge Transfer from Multiple Self-supervised Learning
    Tasks via Graph Distillation for Video Classification. IJCAI 2018 (arXiv:1804.10069), whose graphs of logits and of
    representations have other distances.

    Args:
        teachers: K.
        num_classes: Width of the logits.
        student_channels: Values of the student's representation a sample; null for logits alone.
        teacher_channels: Those of each teacher's.
        alpha: How far the edges may differ; at least 0.
        prior: How much each teacher counts beside the edges; only ratios matter. All the same if not given.
        logits_weight: Of the imitation of logits.
        representation_weight: Of the imitation of representations.
        prior_weight: Of the edges' distance from the prior.

    Shapes:
        Student logits (N, C) and representation (N, ...), teachers' logits (N, K, C) and representations (N, ...).

    Raises:
        UsageError: There are fewer than two teachers, the lists are not one entry a teacher, or a number is out of its
            range; at a call: the tensors are not what the loss was built for.

    Example:
        >>> loss = ModalityGraphLoss(teachers=2, num_classes=3, alpha=0.0)
        >>> student = torch.eye(3)
        >>> loss(student, torch.stack((student, -student), dim=1))
        tensor(20., grad_fn=<AddBackward0>)
    """

    compares_samples = True  # the mean over the batch of the edges

    def __init__(
        self,
        teachers: int,
        num_classes: int = 10,
        student_channels: int | None = None,
        teacher_channels: Sequence[int] | None = None,
        alpha: float = 0.125,
        prior: Sequence[float] | None = None,
        logits_weight: float = 10.0,
        representation_weight: float = 1.0,
        prior_weight: float = 10.0,
    ) -> None:
        super().__init__()
        if teachers < 2:
            raise UsageError(f"teachers={teachers}: a graph chooses among at least 2")
        for name, given in (("teacher_channels", teacher_channels), ("prior", prior)):
            if given is not None and (len(given) != teachers or min(given) <= 0):
                raise UsageError(f"{name}={list(given)} must be one number above 0 for each of the {teachers} teachers")
        if (student_channels is None) != (teacher_channels is None):
            raise UsageError("give both student_channels and teacher_channels, or neither for logits alone")
        self.teachers = teachers
        self.num_classes = num_classes
        self.student_channels = student_channels
        self.teacher_channels = list(teacher_channels or [])
        self.alpha = check_not_negative(alpha, "alpha")
        self.logits_weight = check_not_negative(logits_weight, "logits_weight")
        self.representation_weight = check_not_negative(representation_weight, "representation_weight")
        self.prior_weight = check_not_negative(prior_weight, "prior_weight")
        self.prior = [share / sum(prior) for share in prior] if prior is not None else [1 / teachers] * teachers
        self.of_logits = nn.Linear(num_classes, 1, bias=False)
        self.of_representations = nn.ModuleList(nn.Linear(channels, 1) for channels in self.teacher_channels)
        self.connectors = nn.ModuleList(nn.Linear(student_channels or 0, c) for c in self.teacher_channels)

    def forward(
        self, student: Tensor | list[Tensor], teacher: Tensor | list[Tensor], target: Tensor | None = None
    ) -> Tensor:
        """The loss; `target` is not looked at."""
        logits, own = _taken_apart(student)
        shown, theirs = _taken_apart(teacher)
        self._check(logits, own, shown, theirs)
        edges = self.edges(shown, theirs)
        prior = edges.new_tensor(self.prior)
        kind: torch.dtype = self.of_logits.weight.dtype
        distances = self.logits_weight * _distance(logits.unsqueeze(1), shown)
        if own:
            pairs = zip(self.connectors, theirs, strict=True)
            apart = [_distance(connect(own[0].to(kind)), h) for connect, h in pairs]
            distances = distances + self.representation_weight * torch.stack(apart, dim=1)
        imitation = ((edges + prior) * distances).sum(dim=1).mean()
        return imitation + self.prior_weight * (edges.mean(dim=0) - prior).square().sum()

    def edges(self, shown: Tensor, theirs: list[Tensor]) -> Tensor:
        """How much each sample listens to each teacher, (N, K), by logits (N, K, C) and representations (N, D)."""
        kind: torch.dtype = self.of_logits.weight.dtype
        scores = self.of_logits(shown.to(kind)).squeeze(2)
        if theirs:
            maps = zip(self.of_representations, theirs, strict=True)
            scores = scores + torch.cat([map_(h.to(kind)) for map_, h in maps], dim=1)
        return (self.alpha * upcast(scores)).softmax(dim=1)

    def _check(self, logits: Tensor, own: list[Tensor], shown: Tensor, theirs: list[Tensor]) -> None:
        expected = (len(logits), self.teachers, self.num_classes)
        if logits.dim() != 2 or logits.shape[1] != self.num_classes or shown.shape != expected or len(logits) < 2:
            raise UsageError(
                f"student logits {tuple(logits.shape)} and teacher logits {tuple(shown.shape)} must be "
                f"(N, {self.num_classes}) and (N, {self.teachers}, {self.num_classes}) with the same N >= 2, the "
                "samples of a batch: set teachers and num_classes, and let a ModalityEnsemble or an Ensemble teach"
            )
        if len(own) != len(self.connectors[:1]) or len(theirs) != len(self.teacher_channels):
            raise UsageError(
                f"{len(own)} and {len(theirs)} representations beside the logits, and the loss was built for "
                f"{len(self.connectors[:1])} of the student and {len(self.teacher_channels)} of the teachers: "
                "set student_channels and teacher_channels, or the term's layers"
            )
        if own and own[0].shape[1] != self.student_channels:
            raise WidthError("student", own[0].shape[1], self.student_channels or 0, layer=1)
        for k, (h, channels) in enumerate(zip(theirs, self.teacher_channels, strict=True)):
            if h.shape[1] != channels:
                raise WidthError("teacher", h.shape[1], channels, layer=k + 1)


def _taken_apart(given: Tensor | list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Logits, and representations of one row a sample."""
    if isinstance(given, Tensor):
        return given, []
    return given[0], [each.flatten(1) for each in given[1:]]


def _distance(first: Tensor, second: Tensor) -> Tensor:
    """1 - cos, over the last dimension."""
    return 1 - (unit(upcast(first)) * unit(upcast(second))).sum(dim=-1)
