"""Who teaches whom: each scheme is a LightningModule."""

from kd_lightning.schemes.classifier import Classifier
from kd_lightning.schemes.offline import OfflineDistiller

__all__ = ["Classifier", "OfflineDistiller"]
