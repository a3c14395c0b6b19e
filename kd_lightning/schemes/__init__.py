"""Who teaches whom: each scheme is a LightningModule."""

from kd_lightning.schemes.adversarial import AdversarialDistiller
from kd_lightning.schemes.class_wise import CSKD
from kd_lightning.schemes.classifier import Classifier
from kd_lightning.schemes.contrastive_inversion import ContrastiveInversion
from kd_lightning.schemes.cross_modal import CrossModalDistiller
from kd_lightning.schemes.data_free import DataFreeDistiller
from kd_lightning.schemes.dataset_distillation import DatasetDistillation
from kd_lightning.schemes.few_shot import FewShotDistiller
from kd_lightning.schemes.ffl import FFL
from kd_lightning.schemes.grafting import GraftingDistiller
from kd_lightning.schemes.inversion import InversionDistiller
from kd_lightning.schemes.kdcl import KDCL
from kd_lightning.schemes.kdgan import KDGAN
from kd_lightning.schemes.mutual import MutualLearning
from kd_lightning.schemes.offline import OfflineDistiller
from kd_lightning.schemes.okddip import OKDDip
from kd_lightning.schemes.one import ONE
from kd_lightning.schemes.online_adversarial import OnlineAdversarial
from kd_lightning.schemes.pseudo_examples import PseudoExamples
from kd_lightning.schemes.rocket import RocketLaunching
from kd_lightning.schemes.self_distiller import SelfDistiller
from kd_lightning.schemes.synthetic import SyntheticInputs
from kd_lightning.schemes.transfer_graph import KnowledgeTransferGraph

__all__ = [
    "CSKD",
    "FFL",
    "KDCL",
    "KDGAN",
    "ONE",
    "AdversarialDistiller",
    "Classifier",
    "ContrastiveInversion",
    "CrossModalDistiller",
    "DataFreeDistiller",
    "DatasetDistillation",
    "FewShotDistiller",
    "GraftingDistiller",
    "InversionDistiller",
    "KnowledgeTransferGraph",
    "MutualLearning",
    "OKDDip",
    "OfflineDistiller",
    "OnlineAdversarial",
    "PseudoExamples",
    "RocketLaunching",
    "SelfDistiller",
    "SyntheticInputs",
]
