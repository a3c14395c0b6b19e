"""Data impression loss: fit an input so that a teacher's output is a given distribution."""

from __future__ import annotations

from torch import Tensor

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_temperature, upcast
from kd_lightning.losses.response.task import task_loss


def impression_loss(student: Tensor, target: Tensor, temperature: float = 20.0) -> Tensor:
    """Cross-entropy between softened logits and given distributions, averaged over the batch.

    L = -1/N sum_n sum_c y_nc log softmax(z_n / T)_c

    Gaurav Kumar Nayak, Konda Reddy Mopuri, Vaisakh Shaj, R. Venkatesh Babu, Anirban Chakraborty: Zero-Shot Knowledge
    Distillation in Deep Networks. ICML 2019 (arXiv:1905.08114), with T = 20. The logits are the teacher's of the
    fitted input, which becomes a data impression.

    Args:
        student: Logits (N, C).
        target: Probabilities (N, C), or class indices (N,).
        temperature: T > 0; higher is softer.

    Raises:
        UsageError: The shapes or types do not fit each other, or the temperature is not a finite number above 0.

    Example:
        >>> import torch
        >>> impression_loss(torch.zeros(1, 2), torch.tensor([[0.9, 0.1]]))
        tensor(0.6931)
    """
    check_temperature(temperature)
    return task_loss(upcast(student) / temperature, target)


class ImpressionLoss(DistillationLoss):
    """Fits an input to a distribution (Nayak et al. 2019, arXiv:1905.08114); see `impression_loss`.

    To apply it to a teacher: ``Term(ImpressionLoss(), student=None)``.

    Args:
        temperature: T > 0; higher is softer.
    """

    takes_rows = True
    needs_target = True

    def __init__(self, temperature: float = 20.0) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)

    def forward(self, student: Tensor, teacher: None, target: Tensor) -> Tensor:
        """Compute the loss of logits (N, C); `teacher` is unused."""
        return impression_loss(student, target, self.temperature)
