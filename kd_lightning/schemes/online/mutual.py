"""Deep mutual learning: networks that learn from each other's predictions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kd_lightning.schemes.online.peers import PeerLearner, detached


class MutualLearning(PeerLearner):
    """Every network learns from the labels and from the predictions of each other network at the same step.

    L_i = CE(z_i, y) + 1 / (K - 1) sum_{j != i} KL(softmax(z_j) || softmax(z_i)), with z_j held fixed; sum_i L_i is
    minimised, and no network gets a gradient from another's loss: d L_i / d theta_j = 0.

    Ying Zhang, Tao Xiang, Timothy M. Hospedales, Huchuan Lu: Deep Mutual Learning. CVPR 2018 (arXiv:1706.00384). The
    paper updates the networks in turn, each against the newest of the others; here one optimizer updates all networks
    at once, from the predictions before the step.

    All networks are trained; `deploy` chooses the inference network. A term with a teacher is averaged over each
    network's K - 1 peers, and every term is summed over the networks and logged as ``train/<term>``. A term addresses
    the same layers in every network, so networks of different architectures are compared at their logits. The baseline
    is the student trained alone, a `Classifier`. The arguments are those of `PeerLearner`.

    Example:
        >>> from kd_lightning import Term
        >>> from kd_lightning.losses import KDLoss, TaskLoss
        >>> from kd_lightning.networks import StudentConvNet
        >>> terms = {"task": Term(TaskLoss(), teacher=None), "mutual": Term(KDLoss(temperature=1.0))}
        >>> learner = MutualLearning(StudentConvNet(), [StudentConvNet(), StudentConvNet()], terms)
        >>> sorted(learner.compute_losses((torch.zeros(2, 3, 28, 28), torch.tensor([3, 7]))))
        ['mutual', 'task']
    """

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """Compute each term, summed over the networks."""
        batch = self.split_batch(batch)
        activations = self.network_activations(batch)
        teachers = [detached(own) for own in activations]
        losses: dict[str, Tensor] = {}
        for name, term in self.terms.all().items():
            if term.teacher is None:
                losses[name] = torch.stack([term(own, None, batch.labels) for own in activations]).sum()
                continue
            pairs = [
                term(own, other, batch.labels)
                for i, own in enumerate(activations)
                for j, other in enumerate(teachers)
                if i != j
            ]
            losses[name] = torch.stack(pairs).sum() / (len(activations) - 1)
        return losses
