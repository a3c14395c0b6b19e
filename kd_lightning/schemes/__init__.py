"""Training schemes: LightningModules that define which network learns from which."""

from kd_lightning.core.exports import public_names
from kd_lightning.schemes.adversarial.adversarial import AdversarialDistiller as AdversarialDistiller
from kd_lightning.schemes.adversarial.kdgan import KDGAN as KDGAN
from kd_lightning.schemes.adversarial.online_adversarial import OnlineAdversarialDistiller as OnlineAdversarialDistiller
from kd_lightning.schemes.adversarial.synthetic import SyntheticInputsDistiller as SyntheticInputsDistiller
from kd_lightning.schemes.adversarial.two_players import (
    AlternatingLearner as AlternatingLearner,
    TwoPlayerLearner as TwoPlayerLearner,
)
from kd_lightning.schemes.classifier import Classifier as Classifier
from kd_lightning.schemes.cross_modal.cross_modal import CrossModalDistiller as CrossModalDistiller
from kd_lightning.schemes.data_free.data_free import DataFreeDistiller as DataFreeDistiller
from kd_lightning.schemes.data_free.dataset_distillation import DatasetDistillation as DatasetDistillation
from kd_lightning.schemes.data_free.generator_inversion import GeneratorInversion as GeneratorInversion
from kd_lightning.schemes.data_free.inversion import InversionDistiller as InversionDistiller
from kd_lightning.schemes.data_free.pixel_inversion import PixelInversion as PixelInversion
from kd_lightning.schemes.data_free.synthesizer import Synthesizer as Synthesizer
from kd_lightning.schemes.few_shot.few_shot import FewShotDistiller as FewShotDistiller
from kd_lightning.schemes.few_shot.grafting import GraftingDistiller as GraftingDistiller
from kd_lightning.schemes.few_shot.pseudo_examples import (
    PseudoExamplesDistiller as PseudoExamplesDistiller,
    PseudoExampleSynthesis as PseudoExampleSynthesis,
)
from kd_lightning.schemes.frozen_teacher import FrozenTeacher as FrozenTeacher
from kd_lightning.schemes.offline import OfflineDistiller as OfflineDistiller
from kd_lightning.schemes.online.ensembles import (
    GeneralEnsemble as GeneralEnsemble,
    LinearEnsemble as LinearEnsemble,
    LogitEnsemble as LogitEnsemble,
    MinLogitEnsemble as MinLogitEnsemble,
    NaiveEnsemble as NaiveEnsemble,
)
from kd_lightning.schemes.online.ffl import FFL as FFL
from kd_lightning.schemes.online.gates import (
    CorrectGate as CorrectGate,
    CutOffGate as CutOffGate,
    EdgeGate as EdgeGate,
    LinearGate as LinearGate,
    ThroughGate as ThroughGate,
)
from kd_lightning.schemes.online.kdcl import KDCL as KDCL
from kd_lightning.schemes.online.mutual import MutualLearning as MutualLearning
from kd_lightning.schemes.online.okddip import OKDDip as OKDDip
from kd_lightning.schemes.online.one import ONE as ONE
from kd_lightning.schemes.online.peers import PeerLearner as PeerLearner
from kd_lightning.schemes.online.rocket import RocketLaunching as RocketLaunching
from kd_lightning.schemes.online.transfer_graph import (
    Edge as Edge,
    KnowledgeTransferGraph as KnowledgeTransferGraph,
)
from kd_lightning.schemes.self.class_wise import CSKD as CSKD
from kd_lightning.schemes.self.self_distiller import SelfDistiller as SelfDistiller

__all__ = public_names(globals())  # pyright: ignore[reportUnsupportedDunderAll]
