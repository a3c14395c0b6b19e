"""OKDDip: auxiliary peers with individual targets by attention, and a leader that learns from their mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kd_lightning.core.activations import Activations, tap
from kd_lightning.core.batch import Batch
from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.term import Term
from kd_lightning.losses.common.checks import upcast
from kd_lightning.schemes.online.peers import PeerLearner


class OKDDip(PeerLearner):
    """Auxiliary peers learn from each other by attention; the student, the group leader, learns from their mean.

    L = sum_i CE(z_i, y) + w T^2 [sum_a KL(softmax(t_a / T) || softmax(z_a / T)) + KL(softmax(m / T) || softmax(z / T))]

    over the peers a, with t_a = sum_b alpha_ab z_b, alpha_a = softmax over b of (L h_a) . (E h_b), where b runs over
    all peers including a, m = mean_b z_b and z the leader's logits. h are features. L and E are learned, without bias,
    and shared by all peers; they make the attention asymmetric, and so the targets diverse.

    Defang Chen, Jian-Ping Mei, Can Wang, Yan Feng, Chun Chen: Online Knowledge Distillation with Diverse Peers. AAAI
    2020 (arXiv:1912.00350), the network-based variant: T = 3, three peers, L and E to an eighth of the features, and w
    raised to 1 over 80 of 300 epochs by a `SigmoidRampUp`. The targets are combined from logits, as in the authors'
    code, which also passes gradients through the targets into the peers. Here z_b and h are held fixed in the targets,
    so that d L_i / d theta_j = 0, and only L and E get gradients through them.

    All networks, L and E are trained; `deploy` chooses the inference network, by default the leader. A term with a
    teacher compares the logits of each network with its target; every term is summed over the networks and logged as
    ``train/<term>``. The baseline is the student trained alone, a `Classifier`. The other arguments are those of
    `PeerLearner`.

    Args:
        peers: The auxiliary peers, at least two, of any architectures that have `layer`; the student need not have it.
        layer: The peers' layer whose features the attention compares. Maps (N, F, ...) are averaged to (N, F).
        features: The number F of features.
        projection: The number of outputs of L and of E; an eighth of the features by default.

    Raises:
        UsageError: There are fewer than two peers, or a width is below 1; or, at a batch, a peer has not F features.

    Example:
        >>> from kd_lightning.losses import KDLoss, TaskLoss
        >>> from kd_lightning.networks import StudentConvNet
        >>> terms = {"task": Term(TaskLoss(), teacher=None), "kd": Term(KDLoss(temperature=3.0))}
        >>> peers = [StudentConvNet() for _ in range(3)]
        >>> learner = OKDDip(StudentConvNet(), peers, terms, layer="conv.5", features=32)
        >>> sorted(learner.compute_losses((torch.zeros(2, 3, 28, 28), torch.tensor([3, 7]))))
        ['kd', 'task']
    """

    def __init__(
        self,
        student: nn.Module,
        peers: Sequence[nn.Module],
        terms: dict[str, Term],
        layer: str,
        features: int,
        projection: int | None = None,
        deploy: Literal["student", "best"] = "student",
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        super().__init__(student, peers, terms, deploy, optimizer, lr_scheduler, lr_interval, metrics)
        if len(peers) < 2:
            raise UsageError(
                f"peers has {len(peers)} network, which could only learn from itself: give at least two, e.g. three"
            )
        projection = max(features // 8, 1) if projection is None else projection
        if features < 1 or projection < 1:
            raise UsageError(f"features={features} and projection={projection} must be at least 1")
        self.layer = layer
        self.query = nn.Linear(features, projection, bias=False)
        self.key = nn.Linear(features, projection, bias=False)

    def network_activations(self, batch: Batch) -> list[Activations]:
        """Return the activations of each network, the leader first; those of the peers include the features."""
        layers = self.terms.layers("student")
        peers = [tap(peer, batch.student, dict.fromkeys([*layers, self.layer, "logits"])) for peer in self.peers]
        return [tap(self.student, batch.student, layers), *peers]

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """Compute each term, summed over the networks."""
        batch = self.split_batch(batch)
        activations = self.network_activations(batch)
        logits = torch.stack([upcast(peer["logits"].detach()) for peer in activations[1:]], dim=1)
        features = torch.stack([self._features(peer) for peer in activations[1:]], dim=1)
        # a, b = peers, c = classes: (N, a, b) @ (N, b, c)
        targets = (self.query(features) @ self.key(features).mT).softmax(dim=2) @ logits
        teachers = [logits.mean(dim=1), *targets.unbind(dim=1)]  # the leader's target first
        pairs = zip(activations, teachers, strict=True)
        losses = [self.term_losses(own, {"logits": target}, batch.labels) for own, target in pairs]
        return {name: torch.stack([of_one[name] for of_one in losses]).sum() for name in self.terms}

    def _features(self, peer: Activations) -> Tensor:
        features = peer[self.layer].detach()
        if features.dim() < 2 or features.shape[1] != self.query.in_features:
            raise UsageError(
                f"layer {self.layer!r} of a peer has the output {tuple(features.shape)}, "
                f"which is not (N, {self.query.in_features}, ...): set features to the number that every peer has there"
            )
        return features.flatten(2).mean(dim=2) if features.dim() > 2 else features
