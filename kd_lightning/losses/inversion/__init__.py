"""Losses on synthetic images, for distillation without data."""

from kd_lightning.core.exports import public_names
from kd_lightning.losses.inversion.activation import (
    ActivationLoss as ActivationLoss,
    activation_loss as activation_loss,
)
from kd_lightning.losses.inversion.activation_record import (
    ActivationRecordLoss as ActivationRecordLoss,
    activation_record_loss as activation_record_loss,
)
from kd_lightning.losses.inversion.batch_norm_statistics import (
    BatchNormStatisticsLoss as BatchNormStatisticsLoss,
    batch_norm_statistics_loss as batch_norm_statistics_loss,
)
from kd_lightning.losses.inversion.impression import (
    ImpressionLoss as ImpressionLoss,
    impression_loss as impression_loss,
)
from kd_lightning.losses.inversion.information_entropy import (
    InformationEntropyLoss as InformationEntropyLoss,
    information_entropy_loss as information_entropy_loss,
)
from kd_lightning.losses.inversion.one_hot import OneHotLoss as OneHotLoss, one_hot_loss as one_hot_loss
from kd_lightning.losses.inversion.total_variation import (
    TotalVariationLoss as TotalVariationLoss,
    total_variation_loss as total_variation_loss,
)

__all__ = public_names(globals())  # pyright: ignore[reportUnsupportedDunderAll]
