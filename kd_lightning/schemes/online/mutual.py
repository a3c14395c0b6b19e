"""Deep mutual learning: networks that teach each other while they learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kd_lightning.schemes.online.peers import PeerLearner, detached


class MutualLearning(PeerLearner):
    """Every network learns from the labels and from what each of the others says at the same step.

    L_i = CE(z_i, y) + 1 / (K - 1) sum_{j != i} KL(softmax(z_j) || softmax(z_i)), with z_j held fixed; sum_i L_i is
    minimised, so that no network is pushed by another's loss: d L_i / d theta_j = 0.

    Ying Zhang, Tao Xiang, Timothy M. Hospedales, Huchuan Lu: Deep Mutual Learning. CVPR 2018 (arXiv:1706.00384). The
    paper updates the networks one after the other, each against the newest of the others; here all of them take their
    step at once, from the predictions before it, with one optimizer.

    A term with a teacher is averaged over each network's K - 1 peers, and every term is summed over the networks; peers
    of one term have the same addresses, so networks of unlike layers are compared at their logits. The arguments are
    those of `PeerLearner`.

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
        """Each term, summed over the networks."""
        batch = self.split_batch(batch)
        seen = self.network_activations(batch)
        taught = [detached(activations) for activations in seen]
        losses: dict[str, Tensor] = {}
        for name, term in self.terms.all().items():
            if term.teacher is None:
                losses[name] = torch.stack([term(own, None, batch.labels) for own in seen]).sum()
                continue
            pairs = [
                term(own, other, batch.labels) for i, own in enumerate(seen) for j, other in enumerate(taught) if i != j
            ]
            losses[name] = torch.stack(pairs).sum() / (len(seen) - 1)
        return losses
