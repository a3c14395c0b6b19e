"""Losses with several teachers."""

from kd_lightning.core.exports import public_names
from kd_lightning.losses.ensemble.ca_mkd import CAMKDLoss as CAMKDLoss, ca_mkd_loss as ca_mkd_loss
from kd_lightning.losses.ensemble.ca_mkd_feature import (
    CAMKDFeatureLoss as CAMKDFeatureLoss,
    ca_mkd_feature_loss as ca_mkd_feature_loss,
)
from kd_lightning.losses.ensemble.ensemble import (
    EnsembleLoss as EnsembleLoss,
    arithmetic_mean as arithmetic_mean,
    geometric_mean as geometric_mean,
)
from kd_lightning.losses.ensemble.feature_ensemble import FeatureEnsembleLoss as FeatureEnsembleLoss

__all__ = public_names(globals())  # pyright: ignore[reportUnsupportedDunderAll]
