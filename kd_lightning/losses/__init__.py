"""What is compared: tensors in, scalar out. Every loss is called as ``loss(student, teacher, target=None)``."""

from kd_lightning.losses.ab import ABLoss, ab_loss
from kd_lightning.losses.activation import ActivationLoss, activation_loss
from kd_lightning.losses.activation_record import ActivationRecordLoss, activation_record_loss
from kd_lightning.losses.adversarial import AdversarialLoss, adversarial_loss, discrimination_loss
from kd_lightning.losses.afd import AFDLoss, afd_loss
from kd_lightning.losses.agreeing_kd import AgreeingKDLoss, agreeing_kd_loss
from kd_lightning.losses.attention_transfer import AttentionTransferLoss, attention_transfer_loss
from kd_lightning.losses.attentive_ensemble import AttentiveEnsembleLoss, attentive_ensemble_loss
from kd_lightning.losses.batch_norm_statistics import BatchNormStatisticsLoss, batch_norm_statistics_loss
from kd_lightning.losses.ca_mkd import CAMKDLoss, ca_mkd_loss
from kd_lightning.losses.ca_mkd_feature import CAMKDFeatureLoss, ca_mkd_feature_loss
from kd_lightning.losses.cc import CCLoss, cc_loss
from kd_lightning.losses.crd import CRDLoss, crd_loss
from kd_lightning.losses.crd_batch import InBatchCRDLoss, in_batch_crd_loss
from kd_lightning.losses.ctkd import CTKDLoss, ctkd_loss
from kd_lightning.losses.cwd import CWDLoss, cwd_loss
from kd_lightning.losses.dist import DISTLoss, dist_loss
from kd_lightning.losses.dkd import DKDLoss, dkd_loss
from kd_lightning.losses.ensemble import EnsembleLoss, arithmetic_mean, geometric_mean
from kd_lightning.losses.factor_transfer import FactorTransferLoss, factor_transfer_loss
from kd_lightning.losses.feature_ensemble import FeatureEnsembleLoss
from kd_lightning.losses.feature_mse import FeatureMSELoss, feature_mse_loss
from kd_lightning.losses.fsp import FSPLoss, fsp_loss
from kd_lightning.losses.gradient_attention import GradientAttentionLoss, gradient_attention_loss
from kd_lightning.losses.hint import HintLoss, hint_loss
from kd_lightning.losses.impression import ImpressionLoss, impression_loss
from kd_lightning.losses.information_entropy import InformationEntropyLoss, information_entropy_loss
from kd_lightning.losses.irg import IRGLoss, irg_loss
from kd_lightning.losses.jacobian import JacobianLoss, jacobian_loss
from kd_lightning.losses.jsd import JSDLoss, jsd_loss
from kd_lightning.losses.kd import KDLoss, kd_loss
from kd_lightning.losses.kl_mae import KLMAELoss, kl_mae_loss
from kd_lightning.losses.least_squares_adversarial import (
    LeastSquaresAdversarialLoss,
    least_squares_adversarial_loss,
    least_squares_discrimination_loss,
)
from kd_lightning.losses.locality_preserving import LocalityPreservingLoss, locality_preserving_loss
from kd_lightning.losses.logit_l1 import LogitL1Loss, logit_l1_loss
from kd_lightning.losses.logit_mse import LogitMSELoss, logit_mse_loss
from kd_lightning.losses.logit_standardization import LogitStandardizationKDLoss, logit_standardization_kd_loss
from kd_lightning.losses.lsp import LSPLoss, lsp_loss
from kd_lightning.losses.mgd import MGDLoss, mgd_loss
from kd_lightning.losses.modality_graph import ModalityGraphLoss
from kd_lightning.losses.multi_head_graph import MultiHeadGraphLoss, multi_head_graph_loss
from kd_lightning.losses.nst import NSTLoss, nst_loss
from kd_lightning.losses.ofd import OFDLoss, ofd_loss
from kd_lightning.losses.one_hot import OneHotLoss, one_hot_loss
from kd_lightning.losses.parameter_distribution import ParameterDistributionLoss, parameter_distribution_loss
from kd_lightning.losses.pkt import PKTLoss, pkt_loss
from kd_lightning.losses.probability_cross_entropy import ProbabilityCrossEntropyLoss, probability_cross_entropy_loss
from kd_lightning.losses.review import ReviewKDLoss, review_kd_loss
from kd_lightning.losses.rkd import RKDLoss, rkd_loss
from kd_lightning.losses.self_attention import SADLoss, sad_loss
from kd_lightning.losses.semckd import SemCKDLoss, semckd_loss
from kd_lightning.losses.soft_cross_entropy import SoftCrossEntropyLoss, soft_cross_entropy_loss
from kd_lightning.losses.sp import SPLoss, sp_loss
from kd_lightning.losses.srd import SRDLoss, srd_loss
from kd_lightning.losses.task import TaskLoss, task_loss
from kd_lightning.losses.tf_kd import TfKDLoss, tf_kd_loss
from kd_lightning.losses.total_variation import TotalVariationLoss, total_variation_loss
from kd_lightning.losses.vid import VIDLoss, vid_loss
from kd_lightning.losses.wsld import WSLDLoss, wsld_loss

__all__ = [
    "ABLoss",
    "AFDLoss",
    "ActivationLoss",
    "ActivationRecordLoss",
    "AdversarialLoss",
    "AgreeingKDLoss",
    "AttentionTransferLoss",
    "AttentiveEnsembleLoss",
    "BatchNormStatisticsLoss",
    "CAMKDFeatureLoss",
    "CAMKDLoss",
    "CCLoss",
    "CRDLoss",
    "CTKDLoss",
    "CWDLoss",
    "DISTLoss",
    "DKDLoss",
    "EnsembleLoss",
    "FSPLoss",
    "FactorTransferLoss",
    "FeatureEnsembleLoss",
    "FeatureMSELoss",
    "GradientAttentionLoss",
    "HintLoss",
    "IRGLoss",
    "ImpressionLoss",
    "InBatchCRDLoss",
    "InformationEntropyLoss",
    "JSDLoss",
    "JacobianLoss",
    "KDLoss",
    "KLMAELoss",
    "LSPLoss",
    "LeastSquaresAdversarialLoss",
    "LocalityPreservingLoss",
    "LogitL1Loss",
    "LogitMSELoss",
    "LogitStandardizationKDLoss",
    "MGDLoss",
    "ModalityGraphLoss",
    "MultiHeadGraphLoss",
    "NSTLoss",
    "OFDLoss",
    "OneHotLoss",
    "PKTLoss",
    "ParameterDistributionLoss",
    "ProbabilityCrossEntropyLoss",
    "RKDLoss",
    "ReviewKDLoss",
    "SADLoss",
    "SPLoss",
    "SRDLoss",
    "SemCKDLoss",
    "SoftCrossEntropyLoss",
    "TaskLoss",
    "TfKDLoss",
    "TotalVariationLoss",
    "VIDLoss",
    "WSLDLoss",
    "ab_loss",
    "activation_loss",
    "activation_record_loss",
    "adversarial_loss",
    "afd_loss",
    "agreeing_kd_loss",
    "arithmetic_mean",
    "attention_transfer_loss",
    "attentive_ensemble_loss",
    "batch_norm_statistics_loss",
    "ca_mkd_feature_loss",
    "ca_mkd_loss",
    "cc_loss",
    "crd_loss",
    "ctkd_loss",
    "cwd_loss",
    "discrimination_loss",
    "dist_loss",
    "dkd_loss",
    "factor_transfer_loss",
    "feature_mse_loss",
    "fsp_loss",
    "geometric_mean",
    "gradient_attention_loss",
    "hint_loss",
    "impression_loss",
    "in_batch_crd_loss",
    "information_entropy_loss",
    "irg_loss",
    "jacobian_loss",
    "jsd_loss",
    "kd_loss",
    "kl_mae_loss",
    "least_squares_adversarial_loss",
    "least_squares_discrimination_loss",
    "locality_preserving_loss",
    "logit_l1_loss",
    "logit_mse_loss",
    "logit_standardization_kd_loss",
    "lsp_loss",
    "mgd_loss",
    "multi_head_graph_loss",
    "nst_loss",
    "ofd_loss",
    "one_hot_loss",
    "parameter_distribution_loss",
    "pkt_loss",
    "probability_cross_entropy_loss",
    "review_kd_loss",
    "rkd_loss",
    "sad_loss",
    "semckd_loss",
    "soft_cross_entropy_loss",
    "sp_loss",
    "srd_loss",
    "task_loss",
    "tf_kd_loss",
    "total_variation_loss",
    "vid_loss",
    "wsld_loss",
]
