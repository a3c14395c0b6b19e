"""What is compared: tensors in, scalar out. Every loss is called as ``loss(student, teacher, target=None)``."""

from kd_lightning.losses.kd import KDLoss, kd_loss
from kd_lightning.losses.kl_mae import KLMAELoss, kl_mae_loss
from kd_lightning.losses.logit_mse import LogitMSELoss, logit_mse_loss
from kd_lightning.losses.probability_cross_entropy import ProbabilityCrossEntropyLoss, probability_cross_entropy_loss
from kd_lightning.losses.soft_cross_entropy import SoftCrossEntropyLoss, soft_cross_entropy_loss
from kd_lightning.losses.task import TaskLoss, task_loss

__all__ = [
    "KDLoss",
    "KLMAELoss",
    "LogitMSELoss",
    "ProbabilityCrossEntropyLoss",
    "SoftCrossEntropyLoss",
    "TaskLoss",
    "kd_loss",
    "kl_mae_loss",
    "logit_mse_loss",
    "probability_cross_entropy_loss",
    "soft_cross_entropy_loss",
    "task_loss",
]
