"""Graph distillation: learned edges weight several teachers for each sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd_lightning.core.errors import UsageError, WidthError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_not_negative, upcast
from kd_lightning.losses.common.vectors import unit


class ModalityGraphLoss(DistillationLoss):
    """Imitate several teachers, weighted for each sample by the learned edges of a graph.

    L = 10 sum_k w_k (1 - cos(z_S, z_k)) + 1 sum_k w_k (1 - cos(V_k h_S, h_k)) + 10 sum_k (mean_n e_k - p_k)^2

    The first two parts are averaged over the samples. w_k = e_k + p_k with the prior p and the edges of a sample
    e_k = softmax_k(alpha (a^T z_k + b_k^T h_k + c_k)), where z are a network's logits and h is its representation.

    Zelun Luo, Jun-Ting Hsieh, Lu Jiang, Juan Carlos Niebles, Li Fei-Fei: Graph Distillation for Action Detection with
    Privileged Modalities. ECCV 2018 (arXiv:1712.00108), with the constants of their code. The last part keeps the
    batch's mean edges near the prior; with alpha = 0 the edges are uniform and not learned. Their edge function also
    takes the student's z and h, which adds the same value to every teacher's score and cancels in the softmax; its two
    successive linear maps are one here. Their networks have one width; here a linear map V_k leads from the student's
    representation to each teacher's. Without representations only the logits are compared, and only they give edges.

    Its term addresses ``student: [logits, <layer>]``, ``teacher: [logits, <a layer of each member>]``, or the logits
    alone. The teachers are a `ModalityEnsemble`, whose inputs the student does not have, or an `Ensemble` on the
    student's input, as in Chenrui Zhang, Yuxin Peng: Better and Faster: Knowledge Transfer from Multiple
    Self-supervised Learning Tasks via Graph Distillation for Video Classification. IJCAI 2018 (arXiv:1804.10069), whose
    graphs of logits and of representations use other distances.

    Args:
        teachers: K, the number of teachers.
        num_classes: Width of the logits.
        student_channels: Width of the student's representation, flattened; null for logits alone.
        teacher_channels: Width of each teacher's representation, flattened.
        alpha: Scale of the scores: the larger, the more the edges differ; at least 0.
        prior: Each teacher's prior weight; only ratios matter. All are equal if not given.
        logits_weight: Weight of the distance between logits.
        representation_weight: Weight of the distance between representations.
        prior_weight: Weight of the distance between mean edges and prior.

    Shapes:
        Student logits (N, C) and representation (N, ...), teachers' logits (N, K, C) and representations (N, ...).

    Raises:
        UsageError: There are fewer than two teachers, a list has not one entry for each teacher, or a number is out of
            range; at a call: the shapes are not those that the loss was built for.

    Example:
        >>> loss = ModalityGraphLoss(teachers=2, num_classes=3, alpha=0.0)
        >>> student = torch.eye(3)
        >>> loss(student, torch.stack((student, -student), dim=1))
        tensor(20., grad_fn=<AddBackward0>)
    """

    compares_samples = True  # in the mean of the edges over the batch

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
            raise UsageError(f"teachers={teachers} must be at least 2: the edges choose among teachers")
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
        self.logit_score = nn.Linear(num_classes, 1, bias=False)
        self.representation_scores = nn.ModuleList(nn.Linear(channels, 1) for channels in self.teacher_channels)
        self.connectors = nn.ModuleList(nn.Linear(student_channels or 0, c) for c in self.teacher_channels)

    def forward(
        self, student: Tensor | list[Tensor], teacher: Tensor | list[Tensor], target: Tensor | None = None
    ) -> Tensor:
        """Compute the loss of logits, alone or with representations; `target` is unused."""
        student_logits, student_representation = _split_layers(student)
        teacher_logits, teacher_representations = _split_layers(teacher)
        self._check(student_logits, student_representation, teacher_logits, teacher_representations)
        edges = self.edges(teacher_logits, teacher_representations)
        prior = edges.new_tensor(self.prior)
        dtype: torch.dtype = self.logit_score.weight.dtype
        distances = self.logits_weight * _cosine_distance(student_logits.unsqueeze(1), teacher_logits)
        if student_representation:
            pairs = zip(self.connectors, teacher_representations, strict=True)
            of_representations = [_cosine_distance(to(student_representation[0].to(dtype)), h) for to, h in pairs]
            distances = distances + self.representation_weight * torch.stack(of_representations, dim=1)
        imitation = ((edges + prior) * distances).sum(dim=1).mean()
        return imitation + self.prior_weight * (edges.mean(dim=0) - prior).square().sum()

    def edges(self, logits: Tensor, representations: list[Tensor]) -> Tensor:
        """Compute each teacher's weight for each sample, (N, K), from logits (N, K, C) and representations (N, D)."""
        dtype: torch.dtype = self.logit_score.weight.dtype
        scores = self.logit_score(logits.to(dtype)).squeeze(2)
        if representations:
            pairs = zip(self.representation_scores, representations, strict=True)
            scores = scores + torch.cat([score(h.to(dtype)) for score, h in pairs], dim=1)
        return (self.alpha * upcast(scores)).softmax(dim=1)

    def _check(self, student: Tensor, hidden: list[Tensor], teachers: Tensor, hints: list[Tensor]) -> None:
        """Check both sides' logits, the student's representation (a list of at most one) and the teachers'."""
        n, classes = len(student), self.num_classes
        if student.shape != (n, classes) or teachers.shape != (n, self.teachers, classes) or n < 2:
            raise UsageError(
                f"student logits {tuple(student.shape)} and teacher logits {tuple(teachers.shape)} must be "
                f"(N, {classes}) and (N, {self.teachers}, {classes}) with the same N >= 2 samples: set "
                "teachers and num_classes, and use a ModalityEnsemble or an Ensemble as the teacher"
            )
        if len(hidden) != len(self.connectors[:1]) or len(hints) != len(self.teacher_channels):
            raise UsageError(
                f"the term lists {len(hidden)} representations of the student and {len(hints)} of the teachers, but "
                f"the loss was built for {len(self.connectors[:1])} and {len(self.teacher_channels)}: "
                "set student_channels and teacher_channels, or the term's layers"
            )
        if hidden and hidden[0].shape[1] != self.student_channels:
            raise WidthError("student", hidden[0].shape[1], self.student_channels or 0, layer=1)
        for k, (h, channels) in enumerate(zip(hints, self.teacher_channels, strict=True)):
            if h.shape[1] != channels:
                raise WidthError("teacher", h.shape[1], channels, layer=k + 1)


def _split_layers(side: Tensor | list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the logits and the flattened representations of a side of the term."""
    if isinstance(side, Tensor):
        return side, []
    return side[0], [layer.flatten(1) for layer in side[1:]]


def _cosine_distance(first: Tensor, second: Tensor) -> Tensor:
    """Compute 1 - cos over the last dimension."""
    return 1 - (unit(upcast(first)) * unit(upcast(second))).sum(dim=-1)
