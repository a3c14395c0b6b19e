"""The networks, what keeps a teacher as it is, and how weights come from files."""

from kd_lightning.networks.average import update_ema
from kd_lightning.networks.bfloat16 import InBFloat16
from kd_lightning.networks.branches import BranchedEnsemble, branch
from kd_lightning.networks.convnet import ConvNet, StudentConvNet, TeacherConvNet
from kd_lightning.networks.digest import digest
from kd_lightning.networks.discriminator import ConvDiscriminator, Discriminator
from kd_lightning.networks.early_exit import EarlyExit
from kd_lightning.networks.ensemble import Ensemble
from kd_lightning.networks.exits import ExitHead, Exits
from kd_lightning.networks.files import WeightsError
from kd_lightning.networks.freezing import freeze, is_frozen, is_left_out, leave_out, take_back, unfreeze
from kd_lightning.networks.fusion import FeatureFusion
from kd_lightning.networks.generator import Generator
from kd_lightning.networks.grafted import GraftedStudent
from kd_lightning.networks.graph import GCNConvolution, GraphNetwork, SAGEConvolution
from kd_lightning.networks.inherit import inherit
from kd_lightning.networks.lenet import LeNet5
from kd_lightning.networks.margin import MarginTeacher
from kd_lightning.networks.mlp import MLP
from kd_lightning.networks.modality_ensemble import ModalityEnsemble
from kd_lightning.networks.paraphraser import Paraphrased, Paraphraser
from kd_lightning.networks.prune import prune
from kd_lightning.networks.row_reader import RowReader
from kd_lightning.networks.rules import FixedDistribution
from kd_lightning.networks.scene_reader import Answerer, Captioner, DigitsEncoder, SceneEncoder
from kd_lightning.networks.simkd import SimKD
from kd_lightning.networks.weights import load_student, load_teacher

__all__ = [
    "MLP",
    "Answerer",
    "BranchedEnsemble",
    "Captioner",
    "ConvDiscriminator",
    "ConvNet",
    "DigitsEncoder",
    "Discriminator",
    "EarlyExit",
    "Ensemble",
    "ExitHead",
    "Exits",
    "FeatureFusion",
    "FixedDistribution",
    "GCNConvolution",
    "Generator",
    "GraftedStudent",
    "GraphNetwork",
    "InBFloat16",
    "LeNet5",
    "MarginTeacher",
    "ModalityEnsemble",
    "Paraphrased",
    "Paraphraser",
    "RowReader",
    "SAGEConvolution",
    "SceneEncoder",
    "SimKD",
    "StudentConvNet",
    "TeacherConvNet",
    "WeightsError",
    "branch",
    "digest",
    "freeze",
    "inherit",
    "is_frozen",
    "is_left_out",
    "leave_out",
    "load_student",
    "load_teacher",
    "prune",
    "take_back",
    "unfreeze",
    "update_ema",
]
