"""Losses on relations between samples."""

from kd_lightning.core.exports import public_names
from kd_lightning.losses.relation.cc import CCLoss as CCLoss, cc_loss as cc_loss
from kd_lightning.losses.relation.crd import CRDLoss as CRDLoss, crd_loss as crd_loss
from kd_lightning.losses.relation.crd_batch import (
    InBatchCRDLoss as InBatchCRDLoss,
    in_batch_crd_loss as in_batch_crd_loss,
)
from kd_lightning.losses.relation.irg import IRGLoss as IRGLoss, irg_loss as irg_loss
from kd_lightning.losses.relation.locality_preserving import (
    LocalityPreservingLoss as LocalityPreservingLoss,
    locality_preserving_loss as locality_preserving_loss,
)
from kd_lightning.losses.relation.multi_head_graph import (
    MultiHeadGraphLoss as MultiHeadGraphLoss,
    multi_head_graph_loss as multi_head_graph_loss,
)
from kd_lightning.losses.relation.pkt import PKTLoss as PKTLoss, pkt_loss as pkt_loss
from kd_lightning.losses.relation.rkd import RKDLoss as RKDLoss, rkd_loss as rkd_loss
from kd_lightning.losses.relation.sp import SPLoss as SPLoss, sp_loss as sp_loss

__all__ = public_names(globals())  # pyright: ignore[reportUnsupportedDunderAll]
