"""One-hot loss: reward confident predictions of a classifier."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_one_side, upcast


def one_hot_loss(student: Tensor) -> Tensor:
    """Cross-entropy of logits against the predicted class, averaged over the batch.

    L = 1/N sum_n (log sum_c exp z_nc - max_c z_nc), smallest where every prediction is certain

    Hanting Chen, Yunhe Wang, Chang Xu, Zhaohui Yang, Chuanjian Liu, Boxin Shi, Chunjing Xu, Chao Xu, Qi Tian: Data-Free
    Learning of Student Networks. ICCV 2019 (arXiv:1904.01186), applied to a teacher's logits of generated inputs, with
    weight 1.

    Args:
        student: Logits (N, C).

    Raises:
        UsageError: The logits are not (N, C) with N >= 1 and C >= 2.

    Example:
        >>> import torch
        >>> one_hot_loss(torch.zeros(2, 10))
        tensor(2.3026)
    """
    check_one_side(student)
    return functional.cross_entropy(upcast(student), student.argmax(dim=1))


class OneHotLoss(DistillationLoss):
    """Cross-entropy against a classifier's own prediction (Chen et al. 2019, arXiv:1904.01186); see `one_hot_loss`.

    To apply it to a teacher: ``Term(OneHotLoss(), student=None)``.
    """

    takes_rows = True

    def forward(self, student: Tensor, teacher: None = None, target: Tensor | None = None) -> Tensor:
        """Compute the loss of logits (N, C); the other arguments are unused."""
        return one_hot_loss(student)
