"""Parameters as knowledge: the student's weights are distributed as the teacher's are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import upcast
from kd_lightning.losses.common.connectors import Features, layer_pairs
from kd_lightning.losses.common.vectors import squared_error, unit


def parameter_distribution_loss(student: Features, teacher: Features) -> Tensor:
    """Squared Wasserstein distance of weights over their root mean square, summed over layers.

    L = 1/D sum_d (s_(d) / rms(s) - t_(d) / rms(t))^2 with s_(d) the d-th smallest of the student's D weights and t_(d)
    the mean of the d-th of D equal parts of the teacher's, in their order

    Junjie Liu, Dongchao Wen, Hongxing Gao, Wei Tao, Tse-Wei Chen, Kinya Osa, Masami Kato: Knowledge Representing:
    Efficient, Sparse Representation of Prior Knowledge for Knowledge Distillation. CVPR workshops, 2019
    (arXiv:1911.05329), takes the distribution of a teacher's parameters as what the student should know beforehand.
    *The formula is ours, not the paper's*: it is one measure of that distance that needs no weights of one shape or
    number. The paper's aggregation of deep layers and its sparse recoding penalty are not here.

    Which weight stands where is not looked at, nor how large they are on the whole, as that depends on how many come
    together in a layer. Each pair of layers may be of any shapes.

    Args:
        student: A parameter, or a list of several.
        teacher: As many.

    Raises:
        UsageError: A parameter is empty, or there are not as many.

    Example:
        >>> parameter_distribution_loss(torch.tensor([3.0, -1.0]), torch.tensor([[-2.0, -2.0], [2.0, 2.0]]))
        tensor(0.2111)
    """
    return torch.stack([_distance(s, t) for s, t in layer_pairs(student, teacher)]).sum()


class ParameterDistributionLoss(DistillationLoss):
    """Parameters as knowledge (after Liu et al. 2019, arXiv:1911.05329); see `parameter_distribution_loss`.

    A term addresses parameters by their names, such as ``conv.2.weight``.
    """

    def forward(self, student: Features, teacher: Features, target: Tensor | None = None) -> Tensor:
        """The loss of parameters of any shapes, a list on each side for several; `target` is not looked at."""
        return parameter_distribution_loss(student, teacher)


def _distance(student: Tensor, teacher: Tensor) -> Tensor:
    if not (student.numel() and teacher.numel()):
        raise UsageError(
            f"student features {tuple(student.shape)} and teacher features {tuple(teacher.shape)} must be parameters, "
            "neither of them empty: address them by their names, e.g. conv.2.weight"
        )
    ours, theirs = (_in_order(side) for side in (student, teacher))
    return squared_error(ours, functional.adaptive_avg_pool1d(theirs.unsqueeze(0), len(ours)).squeeze(0))


def _in_order(weights: Tensor) -> Tensor:
    """Sorted, and of root mean square 1; of zeros, zeros."""
    flat = upcast(weights).flatten()
    return unit(flat).sort(stable=True).values * len(flat) ** 0.5
