"""Knowledge transfer graph: networks, and what each learns from which other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kd_lightning.core.activations import Activations, tap
from kd_lightning.core.batch import target_of
from kd_lightning.core.errors import UsageError
from kd_lightning.core.freezing import is_frozen
from kd_lightning.core.learner import LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.lookup import choose
from kd_lightning.core.loss import loss_trait
from kd_lightning.core.progress import optimizer_step
from kd_lightning.core.terms import Term, names
from kd_lightning.schemes.online.peers import PeerLearner, detached


class Gate(nn.Module, ABC):
    """How much of an edge's loss reaches its target."""

    @abstractmethod
    def forward(self, term: Term, target: Activations, source: Activations | None, labels: dict[str, Tensor]) -> Tensor:
        """The gated loss of what the target network and the source, None for the labels, give for a batch."""


class ThroughGate(Gate):
    """All of it."""

    def forward(self, term: Term, target: Activations, source: Activations | None, labels: dict[str, Tensor]) -> Tensor:
        """The loss."""
        return term(target, source, labels)


class CutOffGate(Gate):
    """Nothing, as if there were no edge: for a search over graphs."""

    def forward(self, term: Term, target: Activations, source: Activations | None, labels: dict[str, Tensor]) -> Tensor:
        """Return zero, without computing the loss."""
        return _none(term, target)


class LinearGate(Gate):
    """Nothing at first, and linearly more with time: the loss times k / k_end, at optimizer step k.

    Args:
        duration: k_end, the optimizer steps until all passes.

    Raises:
        UsageError: `duration` is below 1.
    """

    def __init__(self, duration: int) -> None:
        super().__init__()
        if duration < 1:
            raise UsageError(f"duration={duration} must be at least 1 optimizer step")
        self.duration = duration
        self.step = 0  # k, a function of the trainer's own count and no state

    def forward(self, term: Term, target: Activations, source: Activations | None, labels: dict[str, Tensor]) -> Tensor:
        """The loss, weighed by time."""
        share = min(self.step / self.duration, 1.0)
        return share * term(target, source, labels) if share else _none(term, target)


class CorrectGate(Gate):
    """The samples that the source classifies rightly: the others count as zero in the mean over the batch.

    Labels are always right.

    Raises:
        UsageError: At a batch: its labels are no class indices.
    """

    def forward(self, term: Term, target: Activations, source: Activations | None, labels: dict[str, Tensor]) -> Tensor:
        """The loss of those samples, times their share of the batch."""
        if source is None:
            return term(target, source, labels)
        logits, truth = source["logits"], target_of(labels)
        if truth is None or truth.is_floating_point() or truth.shape != logits.shape[:1] or logits.dim() != 2:
            found = "none" if truth is None else f"{truth.dtype} {tuple(truth.shape)}"
            raise UsageError(
                f"whether a source is right is asked of logits (N, C) and class indices (N,); there are logits "
                f"{tuple(logits.shape)} and target {found}: use another gate"
            )
        right = logits.argmax(dim=1) == truth
        if not right.any():
            return _none(term, target)
        share = right.float().mean()
        return share * term(
            *({name: value[right] for name, value in each.items()} for each in (target, source, labels))
        )


def _none(term: Term, target: Activations) -> Tensor:
    """Zero in place of a loss, with a gradient of zero."""
    return term.idle(target, torch.zeros((), device=next(iter(target.values())).device))


@dataclass(frozen=True)
class Edge:
    """What one network learns, and from whom.

    Args:
        target: The name of the network that learns: ``student``, ``peers.0``, ``peers.1``, ...
        term: What is compared.
        source: The name of the network that it learns from; None for the labels.
        gate: How much of it passes, a `ThroughGate` if not given.
    """

    target: str
    term: Term
    source: str | None = None
    gate: Gate | None = None


class KnowledgeTransferGraph(PeerLearner):
    """A directed graph: its nodes are networks, an edge is a loss of one against another, or the labels, with a gate.

    L_t = sum_s G_st(L_st) is what node t minimises, over its edges from nodes s and from the labels, with sources held
    fixed: d L_t / d theta_s = 0. Weights are those of the terms.

    Soma Minami, Tsubasa Hirakawa, Takayoshi Yamashita, Hironobu Fujiyoshi: Knowledge Transfer Graph for Deep
    Collaborative Learning. ACCV 2020 (arXiv:1909.04286). A frozen node is a teacher that was trained before, one with
    an edge from the labels may learn beside the student. Mutual learning is the complete graph, offline distillation
    the one edge from a frozen node. The paper searches the gates: `ThroughGate`, `CutOffGate`, `LinearGate` and
    `CorrectGate`, for the edges from the labels as well.

    Each edge's loss is logged by the edge's name. The other arguments are those of `PeerLearner`.

    Args:
        peers: The other nodes. A network that `freeze` holds is left as it is, and left out of checkpoints if
            `exclude_from_state_dict` holds it, too, as `load_teacher` gives it.
        edges: By name.

    Raises:
        UsageError: An edge's node is not there (the nearest names are given), it leads to its own source or to a frozen
            node, its term and its source do not agree on whether there is a teacher, a `CorrectGate` stands before a
            loss that compares samples; or a node has no part in the graph or, not frozen, nothing to learn from.

    Example:
        >>> from kd_lightning.losses import KDLoss, TaskLoss
        >>> from kd_lightning.networks import StudentConvNet, TeacherConvNet
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
        self.gates = nn.ModuleDict({name: edge.gate or ThroughGate() for name, edge in edges.items()})
        self.steps_are_alike = not any(isinstance(gate, LinearGate) for gate in self.gates.values())

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Tells the linear gates the time."""
        for gate in self.gates.values():
            if isinstance(gate, LinearGate):
                gate.step = optimizer_step(self.trainer)

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """The gated loss of each edge."""
        batch = self.split_batch(batch)
        seen = {name: tap(node, batch.student, self._layers_of(name)) for name, node in self.networks().items()}
        sources = {name: detached(activations) for name, activations in seen.items()}
        return {
            name: self.gates[name](
                self.terms[name],
                seen[edge.target],
                None if edge.source is None else sources[edge.source],
                batch.labels,
            )
            for name, edge in self.edges.items()
        }

    def _layers_of(self, node: str) -> list[str]:
        """The layers of a node that its edges address."""
        taught = [names(edge.term.student) for edge in self.edges.values() if edge.target == node]
        teaching = [names(edge.term.teacher) for edge in self.edges.values() if edge.source == node]
        logits = [["logits"]] if any(isinstance(gate, CorrectGate) for gate in self.gates.values()) else []
        return list(dict.fromkeys(layer for layers in taught + teaching + logits for layer in layers))


def _check(edges: dict[str, Edge], nodes: dict[str, nn.Module]) -> None:
    for name, edge in edges.items():
        for node in (edge.target, edge.source):
            if node is not None:
                choose(node, nodes, f"edge {name!r}: there is no node {{name}}")
        if edge.source == edge.target:
            raise UsageError(f"edge {name!r} leads from {edge.source!r} to itself: name another source")
        if is_frozen(nodes[edge.target]):
            raise UsageError(f"edge {name!r} leads to {edge.target!r}, which is frozen and cannot learn: leave it out")
        if (edge.source is None) != (edge.term.teacher is None):
            raise UsageError(
                f"edge {name!r}: source={edge.source!r} and the term's teacher={edge.term.teacher!r}: "
                "an edge from the labels has neither, any other has both"
            )
        if isinstance(edge.gate, CorrectGate) and loss_trait(edge.term.loss, "compares_samples"):
            raise UsageError(
                f"edge {name!r}: {type(edge.term.loss).__name__} compares the samples of the whole batch, "
                "and a CorrectGate would take some away: use another gate"
            )
    for node, network in nodes.items():
        taught = any(edge.target == node for edge in edges.values())
        if not taught and not is_frozen(network):
            raise UsageError(f"no edge leads to {node!r}, which would stay as it is: add an edge, or freeze it")
        if not taught and not any(edge.source == node for edge in edges.values()):
            raise UsageError(f"no edge leads from the frozen {node!r}: add one, or leave the network out")
