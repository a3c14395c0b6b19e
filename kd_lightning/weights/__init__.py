"""Weights of networks: reading files, loading, averaging, copying, pruning and exporting."""

from kd_lightning.core.exports import public_names
from kd_lightning.core.hashing import weights_hash as weights_hash
from kd_lightning.core.packaged import packaged_names as packaged_names
from kd_lightning.weights.averaging import update_ema as update_ema
from kd_lightning.weights.copying import copy_layers as copy_layers
from kd_lightning.weights.export import export_checkpoint as export_checkpoint, export_student as export_student
from kd_lightning.weights.loading import load_student as load_student, load_teacher as load_teacher
from kd_lightning.weights.pruning import kept_channels as kept_channels, prune as prune
from kd_lightning.weights.reading import WeightsError as WeightsError, read_weights as read_weights

__all__ = public_names(globals())  # pyright: ignore[reportUnsupportedDunderAll]
