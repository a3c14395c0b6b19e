"""Losses on graphs of samples or of modalities."""

from kd_lightning.core.exports import public_names
from kd_lightning.losses.graph.lsp import LSPLoss as LSPLoss, lsp_loss as lsp_loss
from kd_lightning.losses.graph.modality_graph import ModalityGraphLoss as ModalityGraphLoss

__all__ = public_names(globals())  # pyright: ignore[reportUnsupportedDunderAll]
