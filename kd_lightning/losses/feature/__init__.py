"""Losses on features of layers."""

from kd_lightning.core.exports import public_names
from kd_lightning.losses.feature.ab import ABLoss as ABLoss, ab_loss as ab_loss
from kd_lightning.losses.feature.afd import AFDLoss as AFDLoss, afd_loss as afd_loss
from kd_lightning.losses.feature.attention_transfer import (
    AttentionTransferLoss as AttentionTransferLoss,
    attention_transfer_loss as attention_transfer_loss,
)
from kd_lightning.losses.feature.cwd import CWDLoss as CWDLoss, cwd_loss as cwd_loss
from kd_lightning.losses.feature.factor_transfer import (
    FactorTransferLoss as FactorTransferLoss,
    factor_transfer_loss as factor_transfer_loss,
)
from kd_lightning.losses.feature.feature_mse import (
    FeatureMSELoss as FeatureMSELoss,
    feature_mse_loss as feature_mse_loss,
)
from kd_lightning.losses.feature.fsp import FSPLoss as FSPLoss, fsp_loss as fsp_loss
from kd_lightning.losses.feature.hint import HintLoss as HintLoss, hint_loss as hint_loss
from kd_lightning.losses.feature.mgd import MGDLoss as MGDLoss, mgd_loss as mgd_loss
from kd_lightning.losses.feature.nst import NSTLoss as NSTLoss, nst_loss as nst_loss
from kd_lightning.losses.feature.ofd import OFDLoss as OFDLoss, ofd_loss as ofd_loss
from kd_lightning.losses.feature.parameter_distribution import (
    ParameterDistributionLoss as ParameterDistributionLoss,
    parameter_distribution_loss as parameter_distribution_loss,
)
from kd_lightning.losses.feature.review import ReviewKDLoss as ReviewKDLoss, review_kd_loss as review_kd_loss
from kd_lightning.losses.feature.semckd import SemCKDLoss as SemCKDLoss, semckd_loss as semckd_loss
from kd_lightning.losses.feature.srd import SRDLoss as SRDLoss, srd_loss as srd_loss
from kd_lightning.losses.feature.vid import VIDLoss as VIDLoss, vid_loss as vid_loss

__all__ = public_names(globals())  # pyright: ignore[reportUnsupportedDunderAll]
