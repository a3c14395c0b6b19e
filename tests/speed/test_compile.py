from __future__ import annotations

import pytest
import torch

from kd_lightning import OfflineDistiller, Term, freeze
from kd_lightning.callbacks import TorchCompile
from kd_lightning.losses import HintLoss
from kd_lightning.networks import ConvNet
from tests import toys

# what is compiled is seen by counting what the backend is handed; none of these needs a C++ compiler
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
GRAPHS: list[torch.fx.GraphModule] = []


def counting(graph, inputs):
    GRAPHS.append(graph)
    return graph.forward


def learner() -> OfflineDistiller:
    torch.manual_seed(0)
    terms = toys.terms() | {"hint": Term(HintLoss(4, 8), student="conv.3", teacher="conv.3")}
    return OfflineDistiller(ConvNet(4), freeze(ConvNet(8)), terms)


def fit(folder, module, *callbacks):
    toys.trainer(folder, *callbacks, max_epochs=2).fit(module, toys.data(augmentation=None))
    return toys.weights(module)


@pytest.fixture(autouse=True)
def afresh():
    torch.compiler.reset()
    GRAPHS.clear()
    yield
    torch.compiler.reset()


def test_a_compiled_student_learns_the_same_and_is_given_back(tmp_path, monkeypatch):
    plain = fit(tmp_path, learner())
    assert not GRAPHS
    module = learner()
    compiled = fit(tmp_path, module, TorchCompile(backend=counting))
    assert GRAPHS
    assert compiled.keys() == plain.keys()
    assert all(torch.equal(compiled[name], plain[name]) for name in plain)
    assert module.student._compiled_call_impl is None
    GRAPHS.clear()
    module.student(torch.rand(2, 3, 28, 28))
    assert not GRAPHS


def test_a_network_that_is_not_there_is_named_with_its_neighbours(tmp_path):
    with pytest.raises(ValueError, match="has no network 'studnet' to compile; the nearest names are student"):
        fit(tmp_path, learner(), TorchCompile(["studnet"]))
