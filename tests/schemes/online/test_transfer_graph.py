from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning import OfflineDistiller, Term
from kd_lightning.callbacks import TeacherFreezing
from kd_lightning.losses import FeatureMSELoss, KDLoss, LogitMSELoss, TaskLoss
from kd_lightning.networks import exclude_from_state_dict, freeze
from kd_lightning.schemes import (
    CorrectGate,
    CutOffGate,
    Edge,
    KnowledgeTransferGraph,
    LinearGate,
    MutualLearning,
    ThroughGate,
)
from tests import toys
from tests.schemes.online.test_mutual import batches, conv, follows, kl, networks, says, sgd, without_dropout


def task(target: str, weight: float = 0.5, gate: Any = None) -> Edge:
    return Edge(target, Term(TaskLoss(), weight=weight, teacher=None), gate=gate)


def kd(source: str, target: str, weight: float = 0.35, temperature: float = 1.0, gate: Any = None) -> Edge:
    return Edge(target, Term(KDLoss(temperature), weight=weight), source, gate)


def graph(built: list[nn.Module], edges: dict[str, Edge], **changes) -> KnowledgeTransferGraph:
    return KnowledgeTransferGraph(built[0], built[1:], edges, **changes)


def every_gate() -> KnowledgeTransferGraph:
    """A student, a peer and a frozen teacher that is in no checkpoint."""
    student, peer, teacher = networks()
    edges = {
        "task": task("student"),
        "peer_task": task("peers.0", gate=CorrectGate()),
        "correct": kd("peers.1", "student", gate=CorrectGate()),
        "linear": kd("peers.0", "student", gate=LinearGate(duration=8)),
        "cut": kd("peers.1", "peers.0", gate=CutOffGate()),
        "through": kd("student", "peers.0", gate=ThroughGate()),
    }
    return graph([student, peer, exclude_from_state_dict(freeze(teacher))], edges, deploy="best")


def joint(**changes) -> KnowledgeTransferGraph:
    """A smaller configs/teachers/joint.yaml: one directed edge, and everything that could change a teacher."""
    edges = {"teacher_task": task("peers.0"), "task": task("student"), "kd": kd("peers.0", "student")}
    return graph(
        [toys.network(8, seed=1), toys.network(16, seed=2)],
        edges,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
        **changes,
    )


CASES = {
    "transfer_graph": lambda: toys.Case(every_gate(), data=lambda **changes: toys.data(**{"val_size": 32} | changes)),
    "joint_frozen_at_1": lambda: toys.Case(joint(), [TeacherFreezing("peers.0", freeze_at=1)]),
    "joint_unfrozen_at_2": lambda: toys.Case(joint(), [TeacherFreezing("peers.0", freeze_at=0, unfreeze_at=2)]),
}


# ---- two schemes are graphs


def fitted(learner, folder):
    toys.trainer(folder, max_epochs=2).fit(learner, toys.data())
    return toys.weights(learner)


def three_nodes() -> dict[str, Edge]:
    names = ["student", "peers.0", "peers.1"]
    edges = {f"task_{i}": task(name) for i, name in enumerate(names)}
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    return edges | {f"kd_{j}_{i}": kd(names[j], names[i], weight=0.7 / 2) for i, j in pairs}


def test_mutual_learning_is_the_complete_graph(tmp_path):
    mutual = MutualLearning(
        *split(networks()), {"task": three_nodes()["task_0"].term, "kd": Term(KDLoss(1.0), weight=0.7)}, optimizer=sgd
    )
    complete = graph(networks(), three_nodes(), optimizer=sgd)
    batch = batches().batches[0]
    found = []
    for learner in (mutual, complete):
        torch.manual_seed(0)  # dropout
        losses = learner.compute_losses(batch)
        learner.weighted_sum(losses).backward()
        sums = [sum(loss for name, loss in losses.items() if name.startswith(kind)) for kind in ("task", "kd")]
        found.append((sums[0].item(), sums[1].item() / (1 if learner is mutual else 2)))
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    for (name, ours), theirs in zip(complete.named_parameters(), mutual.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7, msg=name)
    ours, theirs = fitted(complete, tmp_path), fitted(mutual, tmp_path)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5, msg=name)


def split(built: list[nn.Module]) -> tuple[nn.Module, list[nn.Module]]:
    return built[0], built[1:]


def test_offline_distillation_is_the_graph_of_one_edge_from_a_frozen_node(tmp_path):
    def pair():
        return toys.network(8, seed=1), toys.network(16, seed=2)

    student, teacher = pair()
    offline = OfflineDistiller(student, teacher, toys.terms(), optimizer=sgd)
    student, teacher = pair()
    edges = {"task": task("student"), "kd": kd("peers.0", "student", weight=0.5, temperature=3.0)}
    one_edge = graph([student, exclude_from_state_dict(freeze(teacher))], edges, optimizer=sgd)
    batch = batches().batches[0]
    losses = []
    for learner in (offline, one_edge):
        torch.manual_seed(0)
        losses.append(learner.compute_losses(batch))
    assert losses[0] == losses[1]
    ours, theirs = fitted(one_edge, tmp_path), fitted(offline, tmp_path)
    assert not [name for name in ours if name.startswith("peers")]
    assert toys.same({name: ours[name] for name in theirs}, theirs)


# ---- the gates


def test_three_steps_with_every_gate_are_those_of_a_plain_loop(tmp_path):
    built = without_dropout(networks())
    edges = {
        "task": task("student"),
        "peer_task": task("peers.0"),
        "correct": kd("peers.1", "student", temperature=3.0, gate=CorrectGate()),
        "linear": kd("peers.0", "student", gate=LinearGate(duration=4)),
        "cut": kd("peers.1", "peers.0", gate=CutOffGate()),
    }
    student, peer, teacher = copy.deepcopy(built)
    learner = graph([student, peer, freeze(teacher)], edges, optimizer=sgd)
    built[2].requires_grad_(False).eval()
    steps = iter(range(3))
    rightly: list[int] = []

    def losses(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        own, peer, teacher = (network(x) for network in built)
        right = [n for n in range(len(y)) if teacher[n].argmax() == y[n]]
        rightly.append(len(right))
        kept = [kl(own[n : n + 1], teacher[n : n + 1], 3.0) for n in right]
        return {
            "task": functional.cross_entropy(own, y),
            "peer_task": functional.cross_entropy(peer, y),
            "correct": sum(kept, torch.zeros(())) / len(y),
            "linear": next(steps) / 4 * kl(own, peer, 1.0),
            "cut": torch.zeros(()),
        }

    follows(learner, built, losses, {name: edge.term.weight for name, edge in edges.items()}, tmp_path)
    assert 0 < max(rightly) < 16


def test_the_correct_gate_passes_samples_that_the_source_classifies_correctly():
    generator = torch.Generator().manual_seed(1)
    own, other = torch.randn(2, 6, 10, generator=generator)
    own.requires_grad_()
    guess = other.argmax(1)
    term = Term(LogitMSELoss())
    for right in ([0, 2, 3], [0, 1, 2, 3, 4, 5], []):
        y = torch.tensor([int(guess[n]) if n in right else (int(guess[n]) + 1) % 10 for n in range(6)])
        loss = CorrectGate()(term, {"logits": own}, {"logits": other}, {"target": y})
        expected = sum(((own[n, c] - other[n, c]).item() ** 2 for n in right for c in range(10)), 0.0) / 60
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        (gradient,) = torch.autograd.grad(loss, own)  # the loss has a graph even if no sample passes
        assert [n for n in range(6) if gradient[n].any()] == right


def test_the_correct_gate_needs_class_indices():
    logits = {"logits": torch.zeros(2, 10)}
    for labels, found in (({}, "none"), ({"target": torch.zeros(2, 10)}, r"torch.float32 \(2, 10\)")):
        with pytest.raises(ValueError, match=f"target {found}: use another gate"):
            CorrectGate()(Term(KDLoss()), logits, logits, labels)


class Passed(Callback):
    """The share of the loss that the linear gate passes in each batch."""

    def __init__(self) -> None:
        self.parts: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        one = {"logits": torch.ones(1, requires_grad=True)}
        gate = pl_module.gates["linear"]
        self.parts.append(gate(Term(Itself(), teacher=None), one, None, {}).item())


class Itself(nn.Module):
    def forward(self, student, teacher, target=None):
        return student.sum()


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
def test_the_linear_gate_counts_optimizer_steps_under_accumulation_and_after_a_resume(tmp_path):
    def fit(*callbacks, ckpt_path=None):
        passed = Passed()
        trainer = toys.trainer(tmp_path, passed, *callbacks, max_epochs=6, accumulate_grad_batches=2)
        trainer.fit(every_gate(), toys.data(), ckpt_path=ckpt_path)
        return passed.parts

    parts = fit(ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1))
    assert parts == [min(batch // 2 / 8, 1.0) for batch in range(6 * 4)]
    assert fit(ckpt_path=tmp_path / "step=3.ckpt") == parts[6:]


class Counted(ThroughGate):
    """A user's gate that depends on the step and needs logits."""

    depends_on_step = True
    selects_samples = True

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def set_step(self, step):
        self.steps.append(step)

    def forward(self, term, target, source, labels):
        assert "logits" in source
        return super().forward(term, target, source, labels)


def test_a_gate_of_a_user_declares_what_it_needs(tmp_path):
    gate = Counted()
    hint = Term(FeatureMSELoss(), student="1", teacher="1")
    edges = {"task": task("student"), "peer_task": task("peers.0"), "hint": Edge("student", hint, "peers.0", gate)}
    learner = graph([toys.network(seed=1), toys.network(seed=2)], edges)
    assert not learner.steps_are_alike
    toys.trainer(tmp_path, max_steps=3).fit(learner, toys.data())
    assert gate.steps == [0, 1, 2]
    hint.loss.compares_samples = True
    with pytest.raises(ValueError, match="and a Counted selects some of them"):
        graph([toys.network(seed=1), toys.network(seed=2)], edges)


# ---- teachers that learn beside their student


class Teacher(Callback):
    """The teacher's parameters and buffers after each batch, by epoch."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, Tensor]]] = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        state = {name: value.clone() for name, value in pl_module.peers[0].state_dict().items()}
        self.seen.append((trainer.current_epoch, state))


@pytest.mark.parametrize(
    ("freezing", "learns"),
    [
        (TeacherFreezing("peers.0", freeze_at=2), {0, 1}),
        (TeacherFreezing("peers.0", freeze_at=0, unfreeze_at=2), {2, 3}),
        (TeacherFreezing("peers.0", freeze_at=1, unfreeze_at=3), {0, 3}),
    ],
)
def test_a_joint_teacher_learns_in_its_epochs_and_is_bit_equal_in_the_others(freezing, learns, tmp_path):
    """With momentum, weight decay, clipping and BatchNorm, each of which could change it."""
    learner, teacher = joint(), Teacher()
    before = (-1, {name: value.clone() for name, value in learner.peers[0].state_dict().items()})
    trainer = toys.trainer(tmp_path, freezing, teacher, max_epochs=4, gradient_clip_val=0.05)
    trainer.fit(learner, toys.data())
    assert len(teacher.seen) == 16
    for (_, last), (epoch, state) in zip([before, *teacher.seen], teacher.seen, strict=False):
        assert toys.same(last, state) is (epoch not in learns)
        for name in ("2.weight", "3.running_mean"):
            assert torch.equal(last[name], state[name]) is (epoch not in learns)


def test_the_student_learns_while_the_teacher_is_frozen(tmp_path):
    learner, student = joint(), []
    toys.trainer(tmp_path, TeacherFreezing("peers.0", freeze_at=1), max_epochs=1).fit(learner, toys.data())
    assert learner.inference_network_name == "student"
    student = toys.weights(learner.student)
    learner = joint()
    toys.trainer(tmp_path, TeacherFreezing("peers.0", freeze_at=1), max_epochs=2).fit(learner, toys.data())
    assert not toys.same(student, toys.weights(learner.student))


# ---- the best network, the recorded layers, errors


def test_the_best_network_is_one_that_the_checkpoint_holds(tmp_path):
    edges = {"task": task("student"), "peer_task": task("peers.0"), "kd": kd("peers.1", "student")}
    nodes = [says(3), says(4), exclude_from_state_dict(freeze(says(7)))]
    learner = graph(nodes, edges, deploy="best", optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    batch = (torch.rand(8, 3, 28, 28), torch.tensor([7, 7, 7, 7, 7, 4, 4, 3]))
    trainer = toys.trainer(tmp_path, max_epochs=1)
    trainer.fit(learner, toys.Loader([batch]), toys.Loader([batch]))
    assert trainer.callback_metrics["val/acc/peers.1"] == 5 / 8
    assert learner.inference_network_name == "peers.0"


def test_each_node_is_tapped_at_the_layers_of_its_own_edges():
    """Feature maps of different networks: layer 2 of one teaches layer 4 of the other."""
    hint = Term(FeatureMSELoss(), student="2", teacher="4")
    hint.loss.forward = lambda student, teacher, target: (student.mean((1, 2, 3)) - teacher.mean(1)).abs().mean()
    edges = {"task": task("student"), "peer_task": task("peers.0"), "hint": Edge("student", hint, "peers.0")}
    built = without_dropout([conv(1), toys.network(8, seed=2)])
    learner = graph(built, edges)
    (x, y), *_ = batches().batches
    losses = learner.compute_losses((x, y))
    ours, theirs = copy.deepcopy(built[0])[:3](x), copy.deepcopy(built[1])[:5](x)
    expected = (ours.mean((1, 2, 3)) - theirs.mean(1)).abs().mean()
    assert losses["hint"].item() == pytest.approx(expected.item(), rel=1e-5)
    losses["hint"].backward()
    assert all(parameter.grad is None for parameter in built[1].parameters())


def test_invalid_graphs_raise():
    def refused(match: str, *edges: Edge, built: list[nn.Module] | None = None):
        with pytest.raises(ValueError, match=match):
            graph(built or networks()[:2], {f"edge{i}": edge for i, edge in enumerate(edges)})

    both = (task("student"), task("peers.0"))
    refused("there is no node 'peer.0'; the nearest names are peers.0", *both, kd("peer.0", "student"))
    refused("there is no node 'teacher'", *both, task("teacher"))
    refused("leads from 'student' to itself", *both, kd("student", "student"))
    refused(r"source=None and the term's teacher='logits'", *both, Edge("student", Term(KDLoss())))
    refused(r"source='peers.0' and the term's teacher=None", *both, Edge("student", both[0].term, "peers.0"))
    refused("no edge leads to 'peers.0', which would not learn", task("student"), kd("peers.0", "student"))
    refused("no edge leads to 'peers.0'", task("student"))
    frozen = [toys.network(seed=1), freeze(toys.network(seed=2))]
    refused("leads to 'peers.0', which is frozen", *both, built=frozen)
    refused("no edge leads from the frozen 'peers.0'", task("student"), built=frozen)
    relation = KDLoss()
    relation.compares_samples = True
    refused(
        "KDLoss compares the samples of the whole batch",
        *both,
        Edge("student", Term(relation), "peers.0", CorrectGate()),
    )
    with pytest.raises(ValueError, match="duration=0 must be at least 1 optimizer step"):
        LinearGate(duration=0)
