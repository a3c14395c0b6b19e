"""Parameters as knowledge: match the distribution of the student's weights to the teacher's."""

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
    """Squared Wasserstein distance between normalised weight distributions, summed over layers.

    L = 1/D sum_d (s_(d) / rms(s) - t_(d) / rms(t))^2

    s_(d) is the d-th smallest of the student's D weights, t_(d) the mean of the d-th of D equal parts of the teacher's
    sorted weights, and rms the root mean square.

    Junjie Liu, Dongchao Wen, Hongxing Gao, Wei Tao, Tse-Wei Chen, Kinya Osa, Masami Kato: Knowledge Representing:
    Efficient, Sparse Representation of Prior Knowledge for Knowledge Distillation. CVPR workshops, 2019
    (arXiv:1911.05329), takes the distribution of a teacher's parameters as prior knowledge for the student. *The
    formula is ours, not the paper's*: it is a distance between distributions that allows weights of different shapes
    and numbers. The paper's aggregation of deep layers and its sparse recoding penalty are not implemented.

    Neither the positions of the weights nor their overall scale matter; the scale depends on the number of inputs of a
    layer. The two sides of a pair may have any shapes.

    Args:
        student: A parameter, or a list of several.
        teacher: The same number of parameters.

    Raises:
        UsageError: A parameter is empty, or the two sides have different numbers of parameters.

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
        """Compute the loss of parameters of any shapes, a list on each side for several; `target` is unused."""
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
    """Sort the weights and scale them to a root mean square of 1; zeros stay zeros."""
    flat = upcast(weights).flatten()
    return unit(flat).sort(stable=True).values * len(flat) ** 0.5
