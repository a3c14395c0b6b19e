"""Losses with a discriminator."""

from kd_lightning.core.exports import public_names
from kd_lightning.losses.adversarial.adversarial import (
    AdversarialLoss as AdversarialLoss,
    adversarial_loss as adversarial_loss,
    discrimination_loss as discrimination_loss,
)
from kd_lightning.losses.adversarial.least_squares_adversarial import (
    LeastSquaresAdversarialLoss as LeastSquaresAdversarialLoss,
    least_squares_adversarial_loss as least_squares_adversarial_loss,
    least_squares_discrimination_loss as least_squares_discrimination_loss,
)

__all__ = public_names(globals())  # pyright: ignore[reportUnsupportedDunderAll]
