"""Losses: tensors in, scalar out, each called as ``loss(student, teacher, target=None)``."""

from kd_lightning.core.exports import public_names
from kd_lightning.losses.adversarial import *  # noqa: F403
from kd_lightning.losses.attention import *  # noqa: F403
from kd_lightning.losses.ensemble import *  # noqa: F403
from kd_lightning.losses.feature import *  # noqa: F403
from kd_lightning.losses.graph import *  # noqa: F403
from kd_lightning.losses.inversion import *  # noqa: F403
from kd_lightning.losses.relation import *  # noqa: F403
from kd_lightning.losses.response import *  # noqa: F403

__all__ = public_names(globals())  # pyright: ignore[reportUnsupportedDunderAll]
