"""Losses on attention: learned between teachers, of gradients, and of a network on itself."""

from kd_lightning.core.exports import public_names
from kd_lightning.losses.attention.attentive_ensemble import (
    AttentiveEnsembleLoss as AttentiveEnsembleLoss,
    attentive_ensemble_loss as attentive_ensemble_loss,
)
from kd_lightning.losses.attention.gradient_attention import (
    GradientAttentionLoss as GradientAttentionLoss,
    gradient_attention_loss as gradient_attention_loss,
)
from kd_lightning.losses.attention.jacobian import JacobianLoss as JacobianLoss, jacobian_loss as jacobian_loss
from kd_lightning.losses.attention.self_attention import SADLoss as SADLoss, sad_loss as sad_loss

__all__ = public_names(globals())  # pyright: ignore[reportUnsupportedDunderAll]
