"""What is compared: tensors in, scalar out. Every loss is called as ``loss(student, teacher, target=None)``."""

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
from kd_lightning.losses.graph.lsp import LSPLoss as LSPLoss, lsp_loss as lsp_loss
from kd_lightning.losses.graph.modality_graph import ModalityGraphLoss as ModalityGraphLoss
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
from kd_lightning.losses.response.agreeing_kd import (
    AgreeingKDLoss as AgreeingKDLoss,
    agreeing_kd_loss as agreeing_kd_loss,
)
from kd_lightning.losses.response.ctkd import CTKDLoss as CTKDLoss, ctkd_loss as ctkd_loss
from kd_lightning.losses.response.dist import DISTLoss as DISTLoss, dist_loss as dist_loss
from kd_lightning.losses.response.dkd import DKDLoss as DKDLoss, dkd_loss as dkd_loss
from kd_lightning.losses.response.jsd import JSDLoss as JSDLoss, jsd_loss as jsd_loss
from kd_lightning.losses.response.kd import KDLoss as KDLoss, kd_loss as kd_loss
from kd_lightning.losses.response.kl_mae import KLMAELoss as KLMAELoss, kl_mae_loss as kl_mae_loss
from kd_lightning.losses.response.logit_l1 import LogitL1Loss as LogitL1Loss, logit_l1_loss as logit_l1_loss
from kd_lightning.losses.response.logit_mse import LogitMSELoss as LogitMSELoss, logit_mse_loss as logit_mse_loss
from kd_lightning.losses.response.logit_standardization import (
    LogitStandardizationKDLoss as LogitStandardizationKDLoss,
    logit_standardization_kd_loss as logit_standardization_kd_loss,
)
from kd_lightning.losses.response.probability_cross_entropy import (
    ProbabilityCrossEntropyLoss as ProbabilityCrossEntropyLoss,
    probability_cross_entropy_loss as probability_cross_entropy_loss,
)
from kd_lightning.losses.response.soft_cross_entropy import (
    SoftCrossEntropyLoss as SoftCrossEntropyLoss,
    soft_cross_entropy_loss as soft_cross_entropy_loss,
)
from kd_lightning.losses.response.task import TaskLoss as TaskLoss, task_loss as task_loss
from kd_lightning.losses.response.tf_kd import TfKDLoss as TfKDLoss, tf_kd_loss as tf_kd_loss
from kd_lightning.losses.response.wsld import WSLDLoss as WSLDLoss, wsld_loss as wsld_loss

__all__ = public_names(globals())  # pyright: ignore[reportUnsupportedDunderAll]
