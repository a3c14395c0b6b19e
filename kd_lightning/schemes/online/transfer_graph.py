"""Knowledge transfer graph: networks as nodes, and gated losses between them as edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kd_lightning.core.activations import tap
from kd_lightning.core.errors import UsageError
from kd_lightning.core.freezing import is_frozen
from kd_lightning.core.learner import LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.lookup import choose
from kd_lightning.core.loss import loss_trait
from kd_lightning.core.progress import optimizer_step
from kd_lightning.core.term import Term, names
from kd_lightning.schemes.online.gates import EdgeGate, ThroughGate
from kd_lightning.schemes.online.peers import PeerLearner, detached


@dataclass(frozen=True)
class Edge:
    """An edge of the graph: the loss by which one network learns from another, or from the labels.

    Args:
        target: The name of the network that learns: ``student``, ``peers.0``, ``peers.1``, ...
        term: The loss, with its addresses and weight.
        source: The name of the network that it learns from; None for the labels.
        gate: Which part of the loss passes; a `ThroughGate` by default.
    """

    target: str
    term: Term
    source: str | None = None
    gate: EdgeGate | None = None


class KnowledgeTransferGraph(PeerLearner):
    """Networks as the nodes of a directed graph, whose edges are gated losses from other nodes or from the labels.

    L_t = sum_s G_st(L_st) is the loss of node t, over its edges from nodes s and from the labels, with sources held
    fixed: d L_t / d theta_s = 0. Weights are those of the terms.

    Soma Minami, Tsubasa Hirakawa, Takayoshi Yamashita, Hironobu Fujiyoshi: Knowledge Transfer Graph for Deep
    Collaborative Learning. ACCV 2020 (arXiv:1909.04286). A frozen node is a pretrained teacher; a node with an edge
    from the labels may learn beside the student. Mutual learning is the complete graph, offline distillation the one
    edge from a frozen node. The paper searches the gates: `ThroughGate`, `CutOffGate`, `LinearGate` and `CorrectGate`,
    for the edges from the labels as well.

    Every node that is not frozen is trained, all by one optimizer; `deploy` chooses the inference network. The gated
    loss of each edge is logged as ``train/<edge>``. The baseline is the student trained alone, a `Classifier`. The
    other arguments are those of `PeerLearner`.

    Args:
        peers: The other nodes. A network frozen by `freeze` is not trained, and is in no checkpoint if it is excluded
            by `exclude_from_state_dict` as well; `load_teacher` returns networks that are both.
        edges: The edges by name.

    Raises:
        UsageError: A node of an edge does not exist (the nearest names are given); an edge leads to its own source or
            to a frozen node; its term has a teacher and the edge no source, or the reverse; a gate that selects samples
            has a loss that compares samples; or a node has no edge or, not frozen, none to learn by.

    Example:
        >>> from kd_lightning.losses import KDLoss, TaskLoss
        >>> from kd_lightning.networks import StudentConvNet, TeacherConvNet
        >>> from kd_lightning.schemes import CorrectGate
        >>> edges = {
        ...     "task": Edge("student", Term(TaskLoss(), teacher=None)),
        ...     "teacher_task": Edge("peers.0", Term(TaskLoss(), teacher=None)),
        ...     "kd": Edge("student", Term(KDLoss(temperature=4.0)), source="peers.0", gate=CorrectGate()),
        ... }
        >>> learner = KnowledgeTransferGraph(StudentConvNet(), [TeacherConvNet()], edges)
        >>> sorted(learner.compute_losses((torch.zeros(2, 3, 28, 28), torch.tensor([3, 7]))))
        ['kd', 'task', 'teacher_task']
    """

    def __init__(
        self,
        student: nn.Module,
        peers: Sequence[nn.Module],
        edges: dict[str, Edge],
        deploy: Literal["student", "best"] = "student",
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        terms = {name: edge.term for name, edge in edges.items()}
        super().__init__(student, peers, terms, deploy, optimizer, lr_scheduler, lr_interval, metrics)
        _check(edges, self.networks())
        self.edges = edges
        gates = {name: edge.gate or ThroughGate() for name, edge in edges.items()}
        self.gates = nn.ModuleDict(gates)
        self.needs_logits = any(gate.selects_samples for gate in gates.values())
        self.steps_are_alike = not any(gate.depends_on_step for gate in gates.values())

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the optimizer step of the gates that depend on it."""
        if not self.steps_are_alike:
            step = optimizer_step(self.trainer)
            for gate in self.gates.values():
                cast("EdgeGate", gate).set_step(step)

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """Compute the gated loss of each edge."""
        batch = self.split_batch(batch)
        activations = {name: tap(node, batch.student, self._layers_of(name)) for name, node in self.networks().items()}
        sources = {name: detached(recorded) for name, recorded in activations.items()}
        return {
            name: self.gates[name](
                self.terms[name],
                activations[edge.target],
                None if edge.source is None else sources[edge.source],
                batch.labels,
            )
            for name, edge in self.edges.items()
        }

    def _layers_of(self, node: str) -> list[str]:
        """List the layers of a node that its edges address."""
        learning = [names(edge.term.student) for edge in self.edges.values() if edge.target == node]
        teaching = [names(edge.term.teacher) for edge in self.edges.values() if edge.source == node]
        logits = [["logits"]] if self.needs_logits else []
        return list(dict.fromkeys(layer for layers in learning + teaching + logits for layer in layers))


def _check(edges: dict[str, Edge], nodes: dict[str, nn.Module]) -> None:
    for name, edge in edges.items():
        for node in (edge.target, edge.source):
            if node is not None:
                choose(node, nodes, f"edge {name!r}: there is no node {{name}}")
        if edge.source == edge.target:
            raise UsageError(f"edge {name!r} leads from {edge.source!r} to itself: name another source")
        if is_frozen(nodes[edge.target]):
            raise UsageError(f"edge {name!r} leads to {edge.target!r}, which is frozen and cannot learn: remove it")
        if (edge.source is None) != (edge.term.teacher is None):
            raise UsageError(
                f"edge {name!r}: source={edge.source!r} and the term's teacher={edge.term.teacher!r}: "
                "an edge from the labels has neither, any other has both"
            )
        if edge.gate is not None and edge.gate.selects_samples and loss_trait(edge.term.loss, "compares_samples"):
            raise UsageError(
                f"edge {name!r}: {type(edge.term.loss).__name__} compares the samples of the whole batch, "
                f"and a {type(edge.gate).__name__} selects some of them: use another gate"
            )
    for node, network in nodes.items():
        learns = any(edge.target == node for edge in edges.values())
        if not learns and not is_frozen(network):
            raise UsageError(f"no edge leads to {node!r}, which would not learn: add an edge, or freeze it")
        if not learns and not any(edge.source == node for edge in edges.values()):
            raise UsageError(f"no edge leads from the frozen {node!r}: add one, or remove the network")
