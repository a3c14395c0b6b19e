"""Networks, and functions that freeze them, load their weights and change them."""

from kd_lightning.core.channels import repeat_channels as repeat_channels
from kd_lightning.core.exports import public_names
from kd_lightning.core.freezing import (
    exclude_from_state_dict as exclude_from_state_dict,
    freeze as freeze,
    include_in_state_dict as include_in_state_dict,
    is_excluded_from_state_dict as is_excluded_from_state_dict,
    is_frozen as is_frozen,
    unfreeze as unfreeze,
)
from kd_lightning.core.hashing import weights_hash as weights_hash
from kd_lightning.networks.discriminators import ConvDiscriminator as ConvDiscriminator, Discriminator as Discriminator
from kd_lightning.networks.generators import Generator as Generator
from kd_lightning.networks.graphs.graph import (
    GCNConvolution as GCNConvolution,
    GraphNetwork as GraphNetwork,
    SAGEConvolution as SAGEConvolution,
)
from kd_lightning.networks.images.convnet import (
    ConvNet as ConvNet,
    StudentConvNet as StudentConvNet,
    TeacherConvNet as TeacherConvNet,
)
from kd_lightning.networks.images.lenet import LeNet5 as LeNet5
from kd_lightning.networks.images.mlp import MLP as MLP
from kd_lightning.networks.priors import ConstantPrior as ConstantPrior
from kd_lightning.networks.scenes.captioner import Captioner as Captioner
from kd_lightning.networks.scenes.encoders import LabelEncoder as LabelEncoder, SceneEncoder as SceneEncoder
from kd_lightning.networks.scenes.relation_network import RelationNetwork as RelationNetwork
from kd_lightning.networks.sequences.gru_classifier import GRUClassifier as GRUClassifier
from kd_lightning.networks.wrappers.bfloat16 import BFloat16Autocast as BFloat16Autocast
from kd_lightning.networks.wrappers.branched_ensemble import (
    BranchedEnsemble as BranchedEnsemble,
    GatingNetwork as GatingNetwork,
)
from kd_lightning.networks.wrappers.branches import branch as branch
from kd_lightning.networks.wrappers.early_exit import EarlyExit as EarlyExit
from kd_lightning.networks.wrappers.ensemble import Ensemble as Ensemble
from kd_lightning.networks.wrappers.exits import ExitHead as ExitHead, MultiExitNetwork as MultiExitNetwork
from kd_lightning.networks.wrappers.fusion import FeatureFusion as FeatureFusion
from kd_lightning.networks.wrappers.grafted import GraftedStudent as GraftedStudent
from kd_lightning.networks.wrappers.margin import MarginTeacher as MarginTeacher
from kd_lightning.networks.wrappers.modality_ensemble import ModalityEnsemble as ModalityEnsemble
from kd_lightning.networks.wrappers.paraphraser import Paraphrased as Paraphrased, Paraphraser as Paraphraser
from kd_lightning.networks.wrappers.simkd import SimKD as SimKD
from kd_lightning.weights.averaging import update_ema as update_ema
from kd_lightning.weights.copying import copy_layers as copy_layers
from kd_lightning.weights.loading import load_student as load_student, load_teacher as load_teacher
from kd_lightning.weights.pruning import prune as prune
from kd_lightning.weights.reading import WeightsError as WeightsError

__all__ = public_names(globals())  # pyright: ignore[reportUnsupportedDunderAll]
