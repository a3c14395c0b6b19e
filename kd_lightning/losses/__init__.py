"""What is compared: tensors in, scalar out. Every loss is called as ``loss(student, teacher, target=None)``."""

from kd_lightning.losses.ca_mkd import CAMKDLoss, ca_mkd_loss
from kd_lightning.losses.ca_mkd_feature import CAMKDFeatureLoss, ca_mkd_feature_loss
from kd_lightning.losses.ensemble import EnsembleLoss, arithmetic_mean, geometric_mean
from kd_lightning.losses.feature_ensemble import FeatureEnsembleLoss
from kd_lightning.losses.feature_mse import FeatureMSELoss, feature_mse_loss
from kd_lightning.losses.kd import KDLoss, kd_loss
from kd_lightning.losses.kl_mae import KLMAELoss, kl_mae_loss
from kd_lightning.losses.logit_mse import LogitMSELoss, logit_mse_loss
from kd_lightning.losses.probability_cross_entropy import ProbabilityCrossEntropyLoss, probability_cross_entropy_loss
from kd_lightning.losses.self_attention import SADLoss, sad_loss
from kd_lightning.losses.soft_cross_entropy import SoftCrossEntropyLoss, soft_cross_entropy_loss
from kd_lightning.losses.task import TaskLoss, task_loss

__all__ = [
    "CAMKDFeatureLoss",
    "CAMKDLoss",
    "EnsembleLoss",
    "FeatureEnsembleLoss",
    "FeatureMSELoss",
    "KDLoss",
    "KLMAELoss",
    "LogitMSELoss",
    "ProbabilityCrossEntropyLoss",
    "SADLoss",
    "SoftCrossEntropyLoss",
    "TaskLoss",
    "arithmetic_mean",
    "ca_mkd_feature_loss",
    "ca_mkd_loss",
    "feature_mse_loss",
    "geometric_mean",
    "kd_loss",
    "kl_mae_loss",
    "logit_mse_loss",
    "probability_cross_entropy_loss",
    "sad_loss",
    "soft_cross_entropy_loss",
    "task_loss",
]
