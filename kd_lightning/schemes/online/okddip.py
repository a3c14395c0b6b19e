"""OKDDip: diverse peers that each learn from a target of their own, and a leader that learns from all of them."""

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
from kd_lightning.core.terms import Term
from kd_lightning.losses.common.checks import upcast
from kd_lightning.schemes.online.peers import PeerLearner


class OKDDip(PeerLearner):
    """Auxiliary peers learn from each other by attention, the student as the group's leader from their mean.

    L = sum_i CE(z_i, y) + w T^2 [sum_a KL(softmax(t_a / T) || softmax(z_a / T)) + KL(softmax(m / T) || softmax(z / T))]

    over the peers a, with t_a = sum_b alpha_ab z_b, alpha_a = softmax over b of (L h_a) . (E h_b), the peer a itself
    among the b, m = mean_b z_b and z the leader's logits. h are features. L and E, without bias and shared by all
    peers, are learned; they make the attention asymmetric, and so the targets diverse.

    Defang Chen, Jian-Ping Mei, Can Wang, Yan Feng, Chun Chen: Online Knowledge Distillation with Diverse Peers. AAAI
    2020 (arXiv:1912.00350), the network-based variant: T = 3, three peers, L and E to an eighth of the features, and w
    raised to 1 over 80 of 300 epochs by a `SigmoidRampUp`. The targets are combined from logits, as by the authors'
    code, which also lets gradients through the targets into the peers. Here z_b and h are held fixed in them, so that
    d L_i / d theta_j = 0, and only L and E learn from the targets.

    A term with a teacher compares each network with its target, at its logits; every term is summed over the networks.
    The other arguments are those of `PeerLearner`.

    Args:
        peers: The auxiliary peers, at least two, of any architectures that have `layer`. The student needs not.
        layer: The peers' layer whose features the attention looks at. Maps (N, F, ...) are averaged to (N, F).
        features: F.
        projection: Outputs of L and of E; an eighth of the features if not given.

    Raises:
        UsageError: There are fewer than two peers, or a width is below 1; or, at a batch, a peer has other features.

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
            raise UsageError("a single peer could only learn from itself: give at least two, e.g. three")
        projection = max(features // 8, 1) if projection is None else projection
        if features < 1 or projection < 1:
            raise UsageError(f"features={features} and projection={projection} must be at least 1")
        self.layer = layer
        self.query = nn.Linear(features, projection, bias=False)
        self.key = nn.Linear(features, projection, bias=False)

    def network_activations(self, batch: Batch) -> list[Activations]:
        """What each network gives, the leader first; of the peers, the features too."""
        layers = self.terms.layers("student")
        peers = [tap(peer, batch.student, dict.fromkeys([*layers, self.layer, "logits"])) for peer in self.peers]
        return [tap(self.student, batch.student, layers), *peers]

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """Each term, summed over the networks."""
        batch = self.split_batch(batch)
        seen = self.network_activations(batch)
        logits = torch.stack([upcast(peer["logits"].detach()) for peer in seen[1:]], dim=1)
        features = torch.stack([self._features(peer) for peer in seen[1:]], dim=1)
        # a, b = peers, c = classes: (N, a, b) @ (N, b, c)
        targets = (self.query(features) @ self.key(features).mT).softmax(dim=2) @ logits
        taught = [logits.mean(dim=1), *targets.unbind(dim=1)]
        pairs = zip(seen, taught, strict=True)
        losses = [self.term_losses(own, {"logits": target}, batch.labels) for own, target in pairs]
        return {name: torch.stack([of_one[name] for of_one in losses]).sum() for name in self.terms}

    def _features(self, peer: Activations) -> Tensor:
        features = peer[self.layer].detach()
        if features.dim() < 2 or features.shape[1] != self.query.in_features:
            raise UsageError(
                f"layer {self.layer!r} of a peer gave {tuple(features.shape)}, "
                f"which is not (N, {self.query.in_features}, ...): set features to what every peer has there"
            )
        return features.flatten(2).mean(dim=2) if features.dim() > 2 else features
