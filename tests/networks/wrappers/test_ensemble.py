"""Ensembles: stacked logits, paths of the members' layers, and members that stay frozen."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from kd_lightning import OfflineDistiller, Term, UsageError, load_teacher, tap
from kd_lightning.callbacks import TeacherFreezing
from kd_lightning.core.hashing import weights_hash
from kd_lightning.losses import EnsembleLoss, KDLoss
from kd_lightning.networks import MLP, Ensemble, StudentConvNet, TeacherConvNet, is_frozen
from tests import toys

IMAGES = torch.rand(4, 3, 28, 28, generator=torch.Generator().manual_seed(0))


def members() -> list[nn.Module]:
    """Return members of different architectures and widths."""
    torch.manual_seed(0)
    return [TeacherConvNet(), MLP(3 * 28 * 28, [16]), StudentConvNet(), StudentConvNet()]


def distiller(teacher: nn.Module) -> OfflineDistiller:
    return OfflineDistiller(toys.network(), teacher, {"kd": Term(EnsembleLoss(KDLoss()))})


def test_the_members_logits_are_stacked_in_order():
    networks = members()
    logits = Ensemble(networks)(IMAGES)
    assert logits.shape == (4, 4, 10)
    for k, network in enumerate(networks):
        assert torch.equal(logits[:, k], network(IMAGES))


class Tagger(nn.Module):
    """Takes a mapping and returns an object or a mapping with logits, as language models do."""

    def __init__(self, wrap) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.wrap = wrap

    def forward(self, tokens, mask):
        return self.wrap(logits=self.embedding(tokens) * mask.unsqueeze(-1))


def test_a_mapping_is_passed_by_name_and_logits_of_tokens_are_stacked_after_the_batch():
    taggers = [Tagger(SimpleNamespace), Tagger(dict)]
    inputs = {"tokens": torch.tensor([[1, 2, 3], [4, 5, 6]]), "mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}
    logits = tap(Ensemble(taggers), inputs)["logits"]
    assert logits.shape == (2, 2, 3, 5)
    for k, tagger in enumerate(taggers):
        assert torch.equal(logits[:, k], tagger.embedding(inputs["tokens"]) * inputs["mask"].unsqueeze(-1))


def test_logits_of_pixels_are_stacked_after_the_batch():
    logits = Ensemble([nn.Conv2d(3, 5, 1), nn.Conv2d(3, 5, 3, padding=1)])(IMAGES)
    assert logits.shape == (4, 2, 5, 28, 28)


def test_layers_of_members_are_tapped_by_their_number():
    networks = members()
    seen = tap(Ensemble(networks), IMAGES, ["members.0.conv.3", "members.2.conv.3", "input"])
    assert torch.equal(seen["members.0.conv.3"], networks[0].conv[:4](IMAGES))
    assert torch.equal(seen["members.2.conv.3"], networks[2].conv[:4](IMAGES))
    assert torch.equal(seen["input"], IMAGES)


def test_it_compiles():
    ensemble = Ensemble(members())
    expected = ensemble(IMAGES)
    torch.testing.assert_close(torch.compile(ensemble, backend="eager", fullgraph=True)(IMAGES), expected)


@pytest.mark.parametrize("remade", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_it_is_frozen_and_excluded_like_any_teacher_and_so_is_its_copy(remade):
    learner = remade(distiller(Ensemble([toys.network(12, seed=2), toys.network(16, seed=3)])))
    before = weights_hash(learner.teacher)
    learner.train()
    learner.requires_grad_(True)
    losses = learner.compute_losses((IMAGES, torch.arange(4)))
    losses["kd"].backward()
    assert is_frozen(learner.teacher)
    assert not any(module.training for module in learner.teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in learner.teacher.parameters())
    assert weights_hash(learner.teacher) == before  # BatchNorm's statistics, too
    assert not [name for name in learner.state_dict() if "teacher" in name]
    learner.load_state_dict(learner.state_dict())


def test_each_member_can_be_loaded_from_a_separate_file(tmp_path):
    trained = [toys.network(16, seed=2), toys.network(12, seed=3)]
    for k, network in enumerate(trained):
        torch.save(network.state_dict(), tmp_path / f"{k}.pt")
    loaded = [load_teacher(toys.network(width, seed=9), tmp_path / f"{k}.pt") for k, width in enumerate((16, 12))]
    learner = distiller(Ensemble(loaded))
    assert torch.equal(learner.teacher(IMAGES), torch.stack([network.eval()(IMAGES) for network in trained], dim=1))
    assert not [name for name in learner.state_dict() if "teacher" in name]
    learner.load_state_dict(learner.state_dict())


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")  # it needs nothing that saves
def test_the_teachers_do_not_change_and_a_resumed_run_is_bit_exact(tmp_path):
    def fit(*callbacks, seed=3, ckpt_path=None):
        learner = distiller(Ensemble([toys.network(12, seed=2), toys.network(16, seed=seed)]))
        trainer = toys.trainer(tmp_path, TeacherFreezing(), *callbacks, max_epochs=1)
        trainer.fit(learner, toys.data(), ckpt_path=ckpt_path)
        return toys.weights(learner)

    truth = fit(ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1))
    assert toys.same(fit(ckpt_path=tmp_path / "step=2.ckpt"), truth)
    with pytest.raises(UsageError, match="another network 'teacher'"):
        fit(seed=4, ckpt_path=tmp_path / "step=2.ckpt")  # one member is another


def test_wrong_members_are_refused_in_one_line():
    network = toys.network()
    with pytest.raises(ValueError, match="members is empty"):
        Ensemble([])
    with pytest.raises(ValueError, match="members 0 and 2 are the same Sequential"):
        Ensemble([network, toys.network(), network])
    with pytest.raises(
        ValueError, match=r"members\.0 \(Linear\) has logits \(2, 10\) and members\.2 \(Linear\) \(2, 5\)"
    ):
        Ensemble([nn.Linear(3, 10), nn.Linear(3, 10), nn.Linear(3, 5)])(torch.zeros(2, 3))
    with pytest.raises(UsageError, match=r"members\.1 \(LSTM\) returned tuple: return a tensor"):
        Ensemble([nn.Linear(3, 10), nn.LSTM(3, 10)])(torch.zeros(2, 3))


def test_two_heads_on_one_trunk_are_two_members():
    trunk = nn.Linear(3, 4)
    learner = OfflineDistiller(
        nn.Linear(3, 10),
        Ensemble([nn.Sequential(trunk, nn.Linear(4, 10)), nn.Sequential(trunk, nn.Linear(4, 10))]),
        {"kd": Term(EnsembleLoss(KDLoss()))},
    )
    losses = learner.compute_losses(torch.randn(2, 3))
    assert losses["kd"] > 0
    with pytest.raises(ValueError, match="teacher and student share parameters"):
        OfflineDistiller(trunk, Ensemble([nn.Sequential(trunk, nn.Linear(4, 10))]), learner.terms)
