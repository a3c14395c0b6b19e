"""Losses on logits: response distillation and task losses."""

from kd_lightning.core.exports import public_names
from kd_lightning.losses.response.agreeing_kd import (
    AgreeingKDLoss as AgreeingKDLoss,
    agreeing_kd_loss as agreeing_kd_loss,
)
from kd_lightning.losses.response.bernoulli_kd import (
    BernoulliKDLoss as BernoulliKDLoss,
    bernoulli_kd_loss as bernoulli_kd_loss,
)
from kd_lightning.losses.response.binary_task import (
    BinaryTaskLoss as BinaryTaskLoss,
    binary_task_loss as binary_task_loss,
)
from kd_lightning.losses.response.ctkd import CTKDLoss as CTKDLoss, ctkd_loss as ctkd_loss
from kd_lightning.losses.response.dist import DISTLoss as DISTLoss, dist_loss as dist_loss
from kd_lightning.losses.response.dkd import DKDLoss as DKDLoss, dkd_loss as dkd_loss
from kd_lightning.losses.response.jsd import JSDLoss as JSDLoss, jsd_loss as jsd_loss
from kd_lightning.losses.response.kd import KDLoss as KDLoss, kd_loss as kd_loss
from kd_lightning.losses.response.kl_mae import KLMAELoss as KLMAELoss, kl_mae_loss as kl_mae_loss
from kd_lightning.losses.response.logit_l1 import LogitL1Loss as LogitL1Loss, logit_l1_loss as logit_l1_loss
from kd_lightning.losses.response.logit_mse import LogitMSELoss as LogitMSELoss, logit_mse_loss as logit_mse_loss
from kd_lightning.losses.response.logit_standardization import (
    LogitStandardizationKDLoss as LogitStandardizationKDLoss,
    logit_standardization_kd_loss as logit_standardization_kd_loss,
)
from kd_lightning.losses.response.probability_cross_entropy import (
    ProbabilityCrossEntropyLoss as ProbabilityCrossEntropyLoss,
    probability_cross_entropy_loss as probability_cross_entropy_loss,
)
from kd_lightning.losses.response.regression_task import (
    RegressionTaskLoss as RegressionTaskLoss,
    regression_task_loss as regression_task_loss,
)
from kd_lightning.losses.response.soft_cross_entropy import (
    SoftCrossEntropyLoss as SoftCrossEntropyLoss,
    soft_cross_entropy_loss as soft_cross_entropy_loss,
)
from kd_lightning.losses.response.task import TaskLoss as TaskLoss, task_loss as task_loss
from kd_lightning.losses.response.tf_kd import TfKDLoss as TfKDLoss, tf_kd_loss as tf_kd_loss
from kd_lightning.losses.response.wsld import WSLDLoss as WSLDLoss, wsld_loss as wsld_loss

__all__ = public_names(globals())  # pyright: ignore[reportUnsupportedDunderAll]
